"""Queries rotated in place, keys normed and rotated into the cache, values into the cache: one op before attention.

The cache of one layer is [pages][kv heads][keys | values]. Keys: [position / unit][head_dim rounded up to 16][unit],
where a unit is 32 positions (16 in pages of an odd number of 16); values: [v_head_dim / 32][page size][32]. So a kernel
that takes 32 positions, or 32 dimensions, at a time reads memory from one end to the other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import register_jitable

from pyllm.backends.cpu.kernels.rope import turn_head
from pyllm.jit.simd import (
    atomic_add,
    load_f32,
    load_f32x16,
    load_f64,
    load_i32,
    load_i64,
    load_u16,
    max_f32,
    min_f32,
    splat_f32,
    store_f16x16,
    store_f32,
    store_f32x16,
    store_i16,
    store_i32,
)
from pyllm.jit.simd.core import F32, VF32, op, shuffle

LARGEST_F16 = 65504.0


@op(types.void, types.int64, types.int64, types.int64)
def transpose_16x16(b, a):
    """16 rows of 16 floats at a0, a1 bytes apart, become 16 adjacent rows of 16 floats at a2."""
    source, stride, target = a

    def pointer(address: Any) -> Any:
        return b.inttoptr(address, VF32.as_pointer())

    rows = []
    for i in range(16):
        v = b.load(pointer(b.add(source, b.mul(stride, ir.Constant(stride.type, i)))))
        v.align = 4
        rows.append(v)
    # Interleaving rows i and i + 8 four times is a transposition.
    low = [x for i in range(8) for x in (i, 16 + i)]
    high = [x + 8 for x in low]
    for _ in range(4):
        rows = [shuffle(b, rows[i // 2], rows[8 + i // 2], high if i % 2 else low) for i in range(16)]
    for i, v in enumerate(rows):
        b.store(v, pointer(b.add(target, ir.Constant(target.type, 64 * i)))).align = 4


assert VF32.element == F32


@register_jitable
def key_unit(page_size):
    """Positions whose keys lie side by side."""
    return 32 if page_size % 32 == 0 else 16


def store(kv: str) -> Any:
    """Slots: step, counter, Q, ldq bytes, K, ldk bytes, V, ldv bytes, cache, bytes of a page, page size, kv heads,
    query heads per kv head, head_dim, v_head_dim, bytes of a head in a page, bytes of its keys, table, bytes of a table
    row, half, interleaved, q norm weight | 0, bytes between heads' weights, q eps, k norm weight | 0, its bytes, k eps,
    scratch, bytes of a thread's scratch. A negative eps: no norm; half 0: no rotation.

    K 0: keys and values are another op's, and only queries are turned.
    One item is one kv head at up to 16 positions of a sequence, a group of the cache.
    """
    half_floats = kv == "f16"
    size = 2 if half_floats else 4

    @register_jitable
    def store_vector(address, x):
        if half_floats:
            # Infinity times a weight of zero would be NaN for every query of the block.
            store_f16x16(address, max_f32(min_f32(x, splat_f32(LARGEST_F16)), splat_f32(-LARGEST_F16)))
        else:
            store_f32x16(address, x)

    @register_jitable
    def store_keys(rows, ld, n, first, head_dim, dst, step, spare):
        """`n` rows of keys (padded to 16 columns) at lanes first .. of the group at `dst`."""
        for c in range(0, head_dim, 16):
            block = dst + step * c
            if n == 16:
                transpose_16x16(rows + 4 * c, ld, spare)
                for i in range(16):
                    store_vector(block + step * i, load_f32x16(spare + 64 * i))
            else:
                for t in range(n):
                    store_vector(spare, load_f32x16(rows + t * ld + 4 * c))
                    for i in range(16):
                        if half_floats:
                            store_i16(block + step * i + 2 * (first + t), load_u16(spare + 2 * i))
                        else:
                            store_i32(block + step * i + 4 * (first + t), load_i32(spare + 4 * i))

    @register_jitable
    def store_value(src, n, dst, page_size, spare):
        for i in range(0, (n + 31) // 32 * 32, 16):
            place = dst + (i // 32 * page_size * 32 + i % 32) * size
            if i + 16 <= n:
                store_vector(place, load_f32x16(src + 4 * i))
            else:
                for j in range(16):
                    store_f32(spare + 4 * j, load_f32(src + 4 * (i + j)) if i + j < n else np.float32(0))
                store_vector(place, load_f32x16(spare))

    def kernel(args, thread, n_threads):
        step = load_i64(args)
        counter = load_i64(args + 8)
        q = load_i64(args + 16)
        ldq = load_i64(args + 24)
        k = load_i64(args + 32)
        ldk = load_i64(args + 40)
        v = load_i64(args + 48)
        ldv = load_i64(args + 56)
        cache = load_i64(args + 64)
        page_bytes = load_i64(args + 72)
        page_size = load_i64(args + 80)
        n_kv = load_i64(args + 88)
        group = load_i64(args + 96)
        head_dim = load_i64(args + 104)
        v_head_dim = load_i64(args + 112)
        head_bytes = load_i64(args + 120)
        key_bytes = load_i64(args + 128)
        table = load_i64(args + 136)
        row_bytes = load_i64(args + 144)
        half = load_i64(args + 152)
        interleaved = load_i64(args + 160)
        q_weight = load_i64(args + 168)
        q_weight_stride = load_i64(args + 176)
        q_eps = load_f64(args + 184)
        k_weight = load_i64(args + 192)
        k_weight_stride = load_i64(args + 200)
        k_eps = load_f64(args + 208)
        scratch = load_i64(args + 216) + thread * load_i64(args + 224)
        n_seqs = load_i64(step + 32)
        positions = load_i64(step + 48)
        spans = load_i64(step + 64)
        tables = load_i64(step + 72)
        table_bytes = load_i64(step + 80)
        padded = (head_dim + 15) // 16 * 16
        unit = key_unit(page_size)
        ld = 4 * padded + 64
        spare = scratch + 16 * ld

        s, base, count, first, n, p0 = -1, 0, 0, 0, 0, 0
        while True:
            item = atomic_add(counter, 1)
            while s < n_seqs and item >= base + count:
                base += count
                count = 0
                s += 1
                if s < n_seqs:
                    first = load_i32(spans + 8 * s)
                    n = load_i32(spans + 8 * s + 4)
                    p0 = load_i32(positions + 4 * first)
                    count = ((p0 + n + 15) // 16 - p0 // 16) * n_kv
            if s >= n_seqs:
                break
            i = item - base
            head = i % n_kv
            at = (p0 // 16 + i // n_kv) * 16  # first position of the group
            low = max(at, p0)
            m = min(at + 16, p0 + n) - low
            t0 = first + low - p0
            page = load_i32(tables + s * table_bytes + 4 * (at // page_size))
            keys = cache + page * page_bytes + head * head_bytes
            within = at % page_size
            values = keys + key_bytes + 32 * size * (within + low - at)
            keys += size * (padded * (within // unit * unit) + within % unit)
            for j in range(m):
                t = t0 + j
                row = table + t * row_bytes
                if q_eps >= 0.0 or half > 0:
                    for g in range(group):
                        h = head * group + g
                        x = q + t * ldq + 4 * head_dim * h
                        turn_head(
                            x,
                            x,
                            head_dim,
                            q_weight + h * q_weight_stride,
                            q_eps,
                            row,
                            row + row_bytes // 2,
                            half,
                            interleaved,
                        )
                if k != 0:
                    x = k + t * ldk + 4 * head_dim * head
                    weight = k_weight + head * k_weight_stride
                    turn_head(
                        x, scratch + j * ld, head_dim, weight, k_eps, row, row + row_bytes // 2, half, interleaved
                    )
                    value = v + t * ldv + 4 * v_head_dim * head
                    store_value(value, v_head_dim, values + 32 * size * j, page_size, spare)
            if k != 0:
                store_keys(scratch, ld, m, low - at, head_dim, keys, size * unit, spare)

    return kernel
