"""Scores and weighted values of many rows on AMX tiles, from bfloat16 with sums in float32.

Each block of keys and values is converted once for all rows of a tile. Scores are exponents, so queries and keys are
taken in two halves, together 16 bits of precision (all that half-precision keys have), and three products; weights and
values are rounded once, like the activations that the linear layers of such a step read.
"""

from __future__ import annotations

from typing import Any

from numba.extending import register_jitable

from pyllm.backends.cpu.kernels.attention_scratch import BLOCK, Scratch
from pyllm.backends.cpu.kernels.attention_softmax import fill
from pyllm.backends.cpu.simd import (
    hsum_f32,
    load_f16x16,
    load_f32,
    load_f32x16,
    load_i64,
    splat_f32,
    store_bf16x16,
    store_f32x16,
    store_i8,
    store_i32x16,
    store_i64,
    zero_f32,
    zero_i32,
)
from pyllm.backends.cpu.simd.amx import pair_bf16, tile_config, tile_dot_bf16, tile_load, tile_store, tile_zero
from pyllm.backends.cpu.simd.core import F32X16, I32X16, VF32, VI32, const, op

STEP_ROWS = 16


@op(F32X16, F32X16)
def top_half(b, a):
    """Rounded towards zero to bfloat16."""
    return b.bitcast(b.and_(b.bitcast(a[0], VI32), const(VI32, -65536)), VF32)


@op(I32X16, F32X16, F32X16)
def pair_tops(b, a):
    """Upper halves: of a0 in the low half of each lane, of a1 in the high one."""
    low = b.lshr(b.bitcast(a[0], VI32), const(VI32, 16))
    return b.or_(low, b.and_(b.bitcast(a[1], VI32), const(VI32, -65536)))


@register_jitable
def configure(config):
    """All tiles 16 rows of 64 bytes."""
    for i in range(8):
        store_i64(config + 8 * i, 0)
    store_i8(config, 1)
    for i in range(8):
        store_i8(config + 16 + 2 * i, 64)
        store_i8(config + 48 + i, 16)
    tile_config(config)


def engine(kv: str, places: Scratch) -> tuple[Any, Any, Any, Any]:
    """Functions start, begin, scores, weigh, as in `attention.py`."""
    size = 2 if kv == "f16" else 4
    load = load_f16x16 if kv == "f16" else load_f32x16
    ld, q_stride = places.ld, 2 * places.width
    lost = 2 * BLOCK * places.width
    wide_keys, wide_values, weights, alpha_at = places.wide_keys, places.wide_values, places.weights, places.alpha
    rows_at, scores_at = places.rows, places.scores

    @register_jitable
    def start(scratch, queries, rows, head_dim, cap_rows):
        """Queries in halves. Rows are completed to whole tiles with zeros, columns to multiples of 32."""
        halves = scratch + rows_at + cap_rows * (2 * ld + 128)
        n = (head_dim + 31) // 32 * 2
        for r in range(rows, (rows + 15) // 16 * 16):
            fill(queries + r * ld, n, 0.0)
        for r in range((rows + 15) // 16 * 16):
            for v in range(n):
                x = load_f32x16(queries + r * ld + 64 * v)
                top = top_half(x)
                store_bf16x16(halves + r * q_stride + 32 * v, top)
                store_bf16x16(halves + (cap_rows + r) * q_stride + 32 * v, x - top)

    @register_jitable
    def begin(scratch, keys, values, n, head_dim, v_padded):
        """Convert a block of n positions."""
        pairs = (head_dim + 31) // 32 * 16
        dst = scratch + wide_keys
        for g in range((n + 15) // 16):
            src = load_i64(keys + 8 * g)
            for _ in range(head_dim // 2):
                x = load(src)
                y = load(src + 16 * size)
                store_i32x16(dst, pair_tops(x, y))
                store_i32x16(dst + lost, pair_tops(x - top_half(x), y - top_half(y)))
                src += 32 * size
                dst += 64
            for _ in range(head_dim // 2, pairs):
                store_i32x16(dst, zero_i32())
                store_i32x16(dst + lost, zero_i32())
                dst += 64
        dst = scratch + wide_values
        step = 16 * size * v_padded
        for c in range((n + 31) // 32):
            a = load_i64(values + 16 * c)
            b = load_i64(values + 16 * c + 8)
            for i in range(16):
                p = dst + 64 * i
                if 32 * c + 16 + i < n:
                    for j in range(v_padded):
                        store_i32x16(p + 1024 * j, pair_bf16(load(a + 16 * size * j), load(b + 16 * size * j)))
                elif 32 * c + i < n:
                    for j in range(v_padded):
                        store_i32x16(p + 1024 * j, pair_bf16(load(a + 16 * size * j), zero_f32()))
                else:
                    for j in range(v_padded):
                        store_i32x16(p + 1024 * j, zero_i32())
                a += step
                b += step
            dst += 1024 * v_padded

    @register_jitable
    def scores(scratch, m, queries, r, keys, values, n_vectors, head_dim, cap_rows):
        """Of 16 rows; four groups of 16 positions at a time."""
        chunks = (head_dim + 31) // 32
        a = scratch + rows_at + cap_rows * (2 * ld + 128) + r * q_stride
        out = scratch + scores_at
        for v in range(0, n_vectors, 4):
            tile_zero(0)
            tile_zero(1)
            tile_zero(2)
            tile_zero(3)
            for c in range(chunks):
                tile_load(4, a + 64 * c, q_stride)
                tile_load(5, a + cap_rows * q_stride + 64 * c, q_stride)
                b = scratch + wide_keys + (v * chunks + c) * 1024
                tile_load(6, b, 64)
                tile_dot_bf16(0, 4, 6)
                tile_dot_bf16(0, 5, 6)
                tile_load(7, b + lost, 64)
                tile_dot_bf16(0, 4, 7)
                b += 1024 * chunks
                tile_load(6, b, 64)
                tile_dot_bf16(1, 4, 6)
                tile_dot_bf16(1, 5, 6)
                tile_load(7, b + lost, 64)
                tile_dot_bf16(1, 4, 7)
                b += 1024 * chunks
                tile_load(6, b, 64)
                tile_dot_bf16(2, 4, 6)
                tile_dot_bf16(2, 5, 6)
                tile_load(7, b + lost, 64)
                tile_dot_bf16(2, 4, 7)
                b += 1024 * chunks
                tile_load(6, b, 64)
                tile_dot_bf16(3, 4, 6)
                tile_dot_bf16(3, 5, 6)
                tile_load(7, b + lost, 64)
                tile_dot_bf16(3, 4, 7)
            tile_store(0, out + 64 * v, ld)
            tile_store(1, out + 64 * v + 64, ld)
            tile_store(2, out + 64 * v + 128, ld)
            tile_store(3, out + 64 * v + 192, ld)

    @register_jitable
    def weigh(scratch, m, outputs, values, n, v_padded, next_keys):
        """outputs = outputs * alpha + weights x values, 16 rows."""
        alpha = scratch + alpha_at
        if hsum_f32(load_f32x16(alpha)) < 16.0:
            for i in range(16):
                factor = splat_f32(load_f32(alpha + 4 * i))
                for v in range(v_padded):
                    p = outputs + i * ld + 64 * v
                    store_f32x16(p, load_f32x16(p) * factor)
        chunks = (n + 31) // 32
        a = scratch + weights
        for v in range(0, v_padded // 4 * 4, 4):
            out = outputs + 64 * v
            tile_load(0, out, ld)
            tile_load(1, out + 64, ld)
            tile_load(2, out + 128, ld)
            tile_load(3, out + 192, ld)
            for c in range(chunks):
                b = scratch + wide_values + (c * v_padded + v) * 1024
                tile_load(4, a + 64 * c, 2 * BLOCK)
                tile_load(5, b, 64)
                tile_dot_bf16(0, 4, 5)
                tile_load(6, b + 1024, 64)
                tile_dot_bf16(1, 4, 6)
                tile_load(7, b + 2048, 64)
                tile_dot_bf16(2, 4, 7)
                tile_load(5, b + 3072, 64)
                tile_dot_bf16(3, 4, 5)
            tile_store(0, out, ld)
            tile_store(1, out + 64, ld)
            tile_store(2, out + 128, ld)
            tile_store(3, out + 192, ld)
        for v in range(v_padded // 4 * 4, v_padded):
            tile_load(0, outputs + 64 * v, ld)
            for c in range(chunks):
                tile_load(4, a + 64 * c, 2 * BLOCK)
                tile_load(5, scratch + wide_values + (c * v_padded + v) * 1024, 64)
                tile_dot_bf16(0, 4, 5)
            tile_store(0, outputs + 64 * v, ld)

    return start, begin, scores, weigh
