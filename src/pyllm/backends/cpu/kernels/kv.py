"""The store of keys and values: queries rotated in place, keys normed and rotated into the cache, values into the
cache.

The cache of one layer is [pages][kv heads][keys | values]. Keys: [position / unit][head_dim rounded up to 16][unit],
where a unit is 32 positions (16 in pages of an odd number of 16); values: [v_head_dim / 32][page size][32]. So a kernel
that takes 32 positions, or 32 dimensions, at a time reads memory sequentially.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import register_jitable

from pyllm.backends.cpu.arguments.kv import Store
from pyllm.backends.cpu.kernels.rope import turn_head
from pyllm.jit.reader import reader
from pyllm.jit.simd import (
    atomic_add,
    load_f32,
    load_f32x16,
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

read = reader(Store)

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
    """Positions whose keys are interleaved."""
    return 32 if page_size % 32 == 0 else 16


def store(kv: str) -> Any:
    """The kernel for a cache of type `kv`.

    K 0: keys and values are another op's, and only queries are rotated. One item is one kv head at up to 16 positions
    of a sequence, a group of the cache.
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
        a = read(args)
        scratch = a.scratch + thread * a.ld_scratch
        n_seqs = load_i64(a.step + 32)
        positions = load_i64(a.step + 48)
        spans = load_i64(a.step + 64)
        tables = load_i64(a.step + 72)
        table_bytes = load_i64(a.step + 80)
        padded = (a.head_dim + 15) // 16 * 16
        unit = key_unit(a.page_size)
        ld = 4 * padded + 64
        spare = scratch + 16 * ld

        s, base, count, first, n, p0 = -1, 0, 0, 0, 0, 0
        while True:
            item = atomic_add(a.counter, 1)
            while s < n_seqs and item >= base + count:
                base += count
                count = 0
                s += 1
                if s < n_seqs:
                    first = load_i32(spans + 8 * s)
                    n = load_i32(spans + 8 * s + 4)
                    p0 = load_i32(positions + 4 * first)
                    count = ((p0 + n + 15) // 16 - p0 // 16) * a.n_kv
            if s >= n_seqs:
                break
            i = item - base
            head = i % a.n_kv
            at = (p0 // 16 + i // a.n_kv) * 16  # first position of the group
            low = max(at, p0)
            m = min(at + 16, p0 + n) - low
            t0 = first + low - p0
            page = load_i32(tables + s * table_bytes + 4 * (at // a.page_size))
            keys = a.cache + page * a.page_bytes + head * a.head_bytes
            within = at % a.page_size
            values = keys + a.key_bytes + 32 * size * (within + low - at)
            keys += size * (padded * (within // unit * unit) + within % unit)
            for j in range(m):
                t = t0 + j
                row = a.table + t * a.ld_table
                if a.q_eps >= 0.0 or a.half > 0:
                    for g in range(a.group):
                        h = head * a.group + g
                        x = a.q + t * a.ld_q + 4 * a.head_dim * h
                        turn_head(
                            x,
                            x,
                            a.head_dim,
                            a.q_weight + h * a.q_weight_stride,
                            a.q_eps,
                            row,
                            row + a.ld_table // 2,
                            a.half,
                            a.interleaved,
                        )
                if a.k != 0:
                    x = a.k + t * a.ld_k + 4 * a.head_dim * head
                    weight = a.k_weight + head * a.k_weight_stride
                    turn_head(
                        x, scratch + j * ld, a.head_dim, weight, a.k_eps, row, row + a.ld_table // 2, a.half,
                        a.interleaved,
                    )  # fmt: skip
                    value = a.v + t * a.ld_v + 4 * a.v_head_dim * head
                    store_value(value, a.v_head_dim, values + 32 * size * j, a.page_size, spare)
            if a.k != 0:
                store_keys(scratch, ld, m, low - at, a.head_dim, keys, size * unit, spare)

    return kernel
