"""Scores and weighted values of many rows on AMX tiles, from bfloat16 with float32 sums.

Each block of keys and values is converted once for all rows of a tile. Scores are exponents, so queries and keys are
split into two bfloat16 halves, together 16 bits of precision (all of a float16 key), and take three products; weights
and values are rounded once, like the activations of the linear layers on this path.
"""

from __future__ import annotations

from typing import Any

from numba.extending import register_jitable

from pyllm.backends.cpu.kernels.attention_scratch import BLOCK, Scratch
from pyllm.backends.cpu.kernels.attention_softmax import fill
from pyllm.backends.cpu.kernels.kv import key_unit
from pyllm.jit.simd import (
    hsum_f32,
    load_f16x16,
    load_f32,
    load_f32x16,
    load_i64,
    splat_f32,
    store_bf16x16,
    store_f32x16,
    store_i32x16,
    zero_f32,
    zero_i32,
)
from pyllm.jit.simd.amx import (
    pair_bf16,
    pair_tops,
    tile_dot_bf16,
    tile_load,
    tile_store,
    tile_zero,
    top_half,
)

STEP_ROWS = 32


def wide_engine(places: Scratch) -> tuple[Any, Any, Any, Any]:
    """Functions start, begin, scores, weigh, as in `attention.py`."""
    ld = places.ld
    wide_keys, wide_values, weights, alpha_at = places.wide_keys, places.wide_values, places.weights, places.alpha
    rows_at, scores_at, keys_at, values_at = places.rows, places.scores, places.keys, places.values

    @register_jitable
    def start(scratch, queries, rows, head_dim, cap_rows):
        """Queries in halves. Rows are completed to whole tiles with zeros, columns to multiples of 32."""
        halves = scratch + rows_at + cap_rows * (2 * ld + 128)
        n = (head_dim + 31) // 32 * 2
        for r in range(rows, (rows + 31) // 32 * 32):
            fill(queries + r * ld, n, 0.0)
        for r in range((rows + 31) // 32 * 32):
            for v in range(n):
                x = load_f32x16(queries + r * ld + 64 * v)
                top = top_half(x)
                dst = halves + (r // 16 * n + v // 2 * 2) * 1024 + r % 16 * 64 + v % 2 * 32
                store_bf16x16(dst, top)
                store_bf16x16(dst + 1024, x - top)

    @register_jitable
    def begin(scratch, page_size, n, head_dim, v_padded):
        """Convert a block of n positions."""
        chunks = (head_dim + 31) // 32
        step = key_unit(page_size) * 2
        for g in range((n + 15) // 16):
            src = load_i64(scratch + keys_at + 8 * g)
            dst = scratch + wide_keys + (g // 2 * chunks * 4 + g % 2) * 1024
            for c in range(0, 32 * chunks, 32):
                whole = min(head_dim - c, 32) // 2
                for _ in range(whole):
                    x = load_f16x16(src)
                    y = load_f16x16(src + step)
                    store_i32x16(dst, pair_tops(x, y))
                    store_i32x16(dst + 2048, pair_tops(x - top_half(x), y - top_half(y)))
                    src += 2 * step
                    dst += 64
                for _ in range(whole, 16):
                    store_i32x16(dst, zero_i32())
                    store_i32x16(dst + 2048, zero_i32())
                    dst += 64
                dst += 3072
        for i in range(0, (n + 31) // 32 * 32, 2):
            src = load_i64(scratch + values_at + i // 16 * 8) + i % 16 * 64
            dst = scratch + wide_values + i // 32 * 2048 + i % 32 * 32
            for v in range(v_padded):
                p = src + (v // 2 * 2 * page_size + v % 2) * 32
                pair = zero_i32()
                if i + 1 < n:
                    pair = pair_bf16(load_f16x16(p), load_f16x16(p + 64))
                elif i < n:
                    pair = pair_bf16(load_f16x16(p), zero_f32())
                store_i32x16(dst + v // 2 * 64 * BLOCK + v % 2 * 1024, pair)

    @register_jitable
    def store4(p0, p1):
        tile_store(0, p0, ld)
        tile_store(1, p0 + 64, ld)
        tile_store(2, p1, ld)
        tile_store(3, p1 + 64, ld)

    @register_jitable
    def scores(scratch, m, queries, r, page_size, n_vectors, head_dim, cap_rows):
        """Of 32 rows; two groups of 16 positions at a time. Tiles 0 to 3: sums; 4, 5: queries; 6, 7: keys."""
        chunks = (head_dim + 31) // 32
        queries = scratch + rows_at + cap_rows * (2 * ld + 128) + r // 16 * chunks * 2048
        for v in range(0, n_vectors, 2):
            tile_zero(0)
            tile_zero(1)
            tile_zero(2)
            tile_zero(3)
            b = scratch + wide_keys + v * chunks * 2048
            for c in range(chunks):
                a0 = queries + 2048 * c
                a1 = a0 + 2048 * chunks
                tile_load(6, b, 64)
                tile_load(7, b + 1024, 64)
                tile_load(4, a0 + 1024, 64)
                tile_dot_bf16(0, 4, 6)
                tile_dot_bf16(1, 4, 7)
                tile_load(5, a1 + 1024, 64)
                tile_dot_bf16(2, 5, 6)
                tile_dot_bf16(3, 5, 7)
                tile_load(4, a0, 64)
                tile_dot_bf16(0, 4, 6)
                tile_dot_bf16(1, 4, 7)
                tile_load(5, a1, 64)
                tile_dot_bf16(2, 5, 6)
                tile_dot_bf16(3, 5, 7)
                tile_load(6, b + 2048, 64)
                tile_load(7, b + 3072, 64)
                tile_dot_bf16(0, 4, 6)
                tile_dot_bf16(1, 4, 7)
                tile_dot_bf16(2, 5, 6)
                tile_dot_bf16(3, 5, 7)
                b += 4096
            out = scratch + scores_at + 64 * v
            store4(out, out + 16 * ld)

    @register_jitable
    def weigh(scratch, m, outputs, page_size, n, v_padded):
        """outputs = outputs * alpha + weights x values, 32 rows; two tiles of dimensions at a time."""
        for h in range(0, m, 16):
            alphas = scratch + alpha_at + 4 * h
            if hsum_f32(load_f32x16(alphas)) < 16.0:
                for i in range(16):
                    factor = splat_f32(load_f32(alphas + 4 * i))
                    for v in range(v_padded):
                        p = outputs + (h + i) * ld + 64 * v
                        store_f32x16(p, load_f32x16(p) * factor)
        chunks = (n + 31) // 32
        a0 = scratch + weights
        a1 = a0 + 32 * BLOCK
        for v in range(0, v_padded, 2):
            out = outputs + 64 * v
            tile_load(0, out, ld)
            tile_load(1, out + 64, ld)
            tile_load(2, out + 16 * ld, ld)
            tile_load(3, out + 16 * ld + 64, ld)
            b = scratch + wide_values + v * 32 * BLOCK
            for c in range(0, 1024 * chunks, 1024):
                tile_load(4, a0 + c, 64)
                tile_load(6, b, 64)
                tile_dot_bf16(0, 4, 6)
                tile_load(7, b + 1024, 64)
                tile_dot_bf16(1, 4, 7)
                tile_load(5, a1 + c, 64)
                tile_dot_bf16(2, 5, 6)
                tile_dot_bf16(3, 5, 7)
                b += 2048
            store4(out, out + 16 * ld)

    return start, begin, scores, weigh
