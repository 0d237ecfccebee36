"""Paged causal attention with a running softmax, for any mix of prompt chunks and single tokens.

A work item is one kv head, a tile of up to 48 rows (tokens x query heads that share the kv head), and a range of
positions. Keys and values are read in blocks; each block serves all rows of the tile. Long ranges that would leave
threads idle are divided: parts go to a shared buffer, and whoever finishes a tile's last part combines them. The cache
is laid out as `kernels/kv.py` says.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import register_jitable

from pyllm.backends.cpu.kernels import attention_tiles
from pyllm.backends.cpu.simd import (
    atomic_add,
    atomic_store,
    first_lane,
    fma,
    hmax_f32,
    hsum_f32,
    load_f32,
    load_f32x16,
    load_f64,
    load_i32,
    load_i64,
    max_f32,
    select_lt,
    splat_f32,
    store_f32,
    store_f32x16,
    store_i64,
    tanh_f32,
    zero_f32,
)
from pyllm.backends.cpu.simd.core import F32X16, VF32, VI32, const, op
from pyllm.backends.cpu.simd.math import _fma

TILE_ROWS = 48
BLOCK = 128
"""Positions of a block: as many scores of a register tile's rows lie in the first-level cache."""
PART = 256
"""Positions below which a range is not divided."""
PARTS_PER_THREAD = 8
LOWEST = -1e30
"""Start of a running maximum. Finite, so that masked scores, -inf, are always below it."""
LOG2_E = 1.4426950408889634
"""Scores are powers of two from the queries on."""
ROW_COST = 8
"""Reading a position costs as much as computing this many rows."""

# Scratch of a thread: tables first, then rows of queries, outputs, sums and maxima (`scratch_bytes` of the plan).
IOTA, ALPHA, KEYS = 0, 64, 128
LIST = 8 * (BLOCK // 16 + 2)
VALUES = KEYS + 2 * LIST  # after the keys of this block and of the next, which change places
SCORES = 512
assert VALUES + LIST <= SCORES

# 2^f - 1 = f * (...) on [-1/2, 1/2], relative error at most 1.1e-7, and 2^0 is exactly 1.
_EXP2 = (1.3264727065e-03, 9.6715126489e-03, 5.5507337437e-02, 2.4022242085e-01, 6.9314697760e-01)


@op(F32X16, F32X16)
def exp2_f32(b, a):
    """2^x for x up to 0; 0 below -127 and for NaN."""
    x = b.select(b.fcmp_ordered(">", a[0], const(VF32, -127.0)), a[0], const(VF32, -127.0))
    magic = const(VF32, 12582912.0)  # 1.5 * 2^23: adding it leaves the nearest whole number in the low bits
    shifted = b.fadd(x, magic)
    f = b.fsub(x, b.fsub(shifted, magic))
    p = const(VF32, _EXP2[0])
    for c in (*_EXP2[1:], 1.0):
        p = _fma(b, p, f, const(VF32, c))
    return b.bitcast(b.add(b.bitcast(p, VI32), b.shl(b.bitcast(shifted, VI32), const(VI32, 23))), VF32)


@register_jitable
def _exp2(x):
    return first_lane(exp2_f32(splat_f32(x)))


@register_jitable
def _tile_tokens(group):
    return max(1, TILE_ROWS // group)


@register_jitable
def _first_seen(position, window):
    """First position that a tile starting at `position` sees, at the start of a pair of groups."""
    return max(0, position - window + 1) // 32 * 32 if window > 0 else 0


@register_jitable
def _parts(length, rows, target):
    """Into how many parts a tile's range is divided, and positions of a part."""
    n = min((length * (rows + ROW_COST) + target - 1) // target, (length + PART - 1) // PART)
    size = ((length + n - 1) // n + 31) // 32 * 32
    return (length + size - 1) // size, size


@register_jitable
def _target_cost(step, group, n_kv, window, n_threads):
    """Cost that an item should not exceed."""
    tokens = _tile_tokens(group)
    total = 0
    for s in range(load_i64(step + 32)):
        first = load_i32(load_i64(step + 64) + 8 * s)
        n = load_i32(load_i64(step + 64) + 8 * s + 4)
        p = load_i32(load_i64(step + 48) + 4 * first)
        for t in range(0, n, tokens):
            m = min(tokens, n - t)
            total += (p + t + m - _first_seen(p + t, window)) * (m * group + ROW_COST)
    return total * n_kv // (PARTS_PER_THREAD * n_threads) + 1


@register_jitable
def _load_queries(q, ldq, group, head_dim, tokens, factor, dst, ld):
    """Scaled queries as rows: token by token, the group's heads within."""
    for t in range(tokens):
        for g in range(group):
            _write(dst, q + 4 * head_dim * g, head_dim, factor)
            dst += ld
        q += ldq


@register_jitable
def _write(dst, src, n, factor):
    """n columns of src times a factor."""
    whole = n // 16 * 16
    wide = splat_f32(factor)
    for i in range(0, whole, 16):
        store_f32x16(dst + 4 * i, load_f32x16(src + 4 * i) * wide)
    for i in range(whole, n):
        store_f32(dst + 4 * i, load_f32(src + 4 * i) * factor)


@register_jitable
def _fill(dst, n, value):
    """n vectors."""
    for i in range(n):
        store_f32x16(dst + 64 * i, splat_f32(value))


@register_jitable
def _mask(row, n, low, high, iota):
    """Of n vectors of scores, those before `low` and from `high` on become -inf."""
    never = splat_f32(np.float32(-np.inf))
    for v in range(max(high, 0) // 16, n):
        x = load_f32x16(row + 64 * v)
        store_f32x16(row + 64 * v, select_lt(iota, splat_f32(np.float32(high - 16 * v)), x, never))
    for v in range(min((low + 15) // 16, n)):
        x = load_f32x16(row + 64 * v)
        store_f32x16(row + 64 * v, select_lt(iota, splat_f32(np.float32(low - 16 * v)), never, x))


@register_jitable
def _cap(row, n, softcap):
    """Capped scores, in units of a power of two."""
    cap = splat_f32(np.float32(softcap * LOG2_E))
    inverse = splat_f32(np.float32(1.0 / softcap))
    for v in range(n):
        store_f32x16(row + 64 * v, cap * tanh_f32(load_f32x16(row + 64 * v) * inverse))


@register_jitable
def _largest(row, n):
    """Largest of n vectors."""
    best = load_f32x16(row)
    for v in range(1, n):
        best = max_f32(load_f32x16(row + 64 * v), best)
    return hmax_f32(best)


@register_jitable
def _combine(parts, n_parts, part_bytes, tail, n, sink_address, dst):
    """One row from its parts: [output ... | at `tail`: maximum, sum, room for a weight]."""
    sink = load_f32(sink_address) * np.float32(LOG2_E) if sink_address != 0 else np.float32(LOWEST)
    best = sink
    for i in range(n_parts):
        best = max(best, load_f32(parts + i * part_bytes + tail))
    total = _exp2(sink - best) if sink_address != 0 else np.float32(0)
    for i in range(n_parts):
        p = parts + i * part_bytes + tail
        weight = _exp2(load_f32(p) - best)
        store_f32(p + 8, weight)
        total += weight * load_f32(p + 4)
    for c in range(0, n, 16):
        acc = zero_f32()
        for i in range(n_parts):
            p = parts + i * part_bytes
            acc = fma(splat_f32(load_f32(p + tail + 8)), load_f32x16(p + 4 * c), acc)
        store_f32x16(parts + 4 * c, acc)  # of the first part; its columns c .. are not read again
    _write(dst, parts, n, np.float32(1) / total)


def attend(kv: str, width: int) -> Any:
    """Slots: step, counter, Q, ldq bytes, OUT, ldo bytes, cache, bytes of a page, page size, kv heads, query heads per
    kv head, head_dim, v_head_dim, bytes of a head in a page, bytes of its keys, scale, window, softcap, sinks | 0,
    scratch, bytes of a thread's scratch, rows of a thread's scratch, parts, tickets.

    `width`: multiple of 128, at least head_dim and v_head_dim. Parts: rows of scratch * (width + 16) floats each;
    tickets: one int64 for each pair of parts, zero before and after.
    """
    ld = 4 * (width + 16)
    size = 2 if kv == "f16" else 4
    shape = attention_tiles.tile_shape()
    tile = attention_tiles.build(shape, kv, ld)
    rounded = attention_tiles.rounded_rows(shape)
    max_rows, vectors = shape.rows[-1], shape.vectors
    queries_at = SCORES + max_rows * ld

    @register_jitable
    def list_block(list, table, cache, page_bytes, page_size, group_bytes, head_at, b0, b1):
        """Addresses of what each group of positions b0 .. b1 has: keys, or values, where head_at leads to the first."""
        table += 4 * (b0 // page_size)
        within = b0 % page_size
        at = within // 16 * group_bytes
        n = (b1 - b0 + 15) // 16
        for g in range(n):
            store_i64(list + 8 * g, cache + load_i32(table) * page_bytes + head_at + at)
            within += 16
            at += group_bytes
            if within == page_size:
                table += 4
                within = at = 0
        if n % 2 == 1:  # a pair needs two addresses
            store_i64(list + 8 * n, load_i64(list + 8 * (n - 1)))

    @register_jitable
    def soften(scratch, m, n_vectors, maxima, sums, last, head, group, window, softcap):
        """Scores of m rows become weights; alpha, maxima and sums of the running softmax follow. The first row is
        that of the group's `head` for a token at block position `last`."""
        iota = load_f32x16(scratch + IOTA)
        before = load_f32x16(maxima)
        for r in range(m):
            row = scratch + SCORES + r * ld
            low = last - window + 1 if window > 0 else 0
            if softcap > 0.0:
                _cap(row, n_vectors, softcap)
            if last + 1 < 16 * n_vectors or low > 0:
                _mask(row, n_vectors, low, last + 1, iota)
            store_f32(maxima + 4 * r, max(load_f32(maxima + 4 * r), _largest(row, n_vectors)))
            head += 1
            if head == group:
                head = 0
                last += 1
        store_f32x16(scratch + ALPHA, exp2_f32(before - load_f32x16(maxima)))
        for r in range(m):
            row = scratch + SCORES + r * ld
            top = splat_f32(load_f32(maxima + 4 * r))
            total = load_f32x16(sums + 64 * r) * splat_f32(load_f32(scratch + ALPHA + 4 * r))
            for v in range(n_vectors):
                x = exp2_f32(load_f32x16(row + 64 * v) - top)
                store_f32x16(row + 64 * v, x)
                total = total + x
            store_f32x16(sums + 64 * r, total)

    @register_jitable
    def attend_range(args, scratch, table, head, token, rows, position, low, high):
        """Rows of one tile over positions low .. high - 1: outputs, sums and maxima in scratch, not yet divided."""
        q = load_i64(args + 16)
        ldq = load_i64(args + 24)
        cache = load_i64(args + 48)
        page_bytes = load_i64(args + 56)
        page_size = load_i64(args + 64)
        group = load_i64(args + 80)
        head_dim = load_i64(args + 88)
        v_padded = (load_i64(args + 96) + 15) // 16
        head_at = head * load_i64(args + 104)
        key_bytes = load_i64(args + 112)
        scale = load_f64(args + 120)
        window = load_i64(args + 128)
        softcap = load_f64(args + 136)
        factor = np.float32(scale if softcap > 0.0 else scale * LOG2_E)
        cap_rows = load_i64(args + 168)
        key_group = (head_dim + 15) // 16 * 256 * size
        value_step = 16 * size * v_padded
        queries = scratch + queries_at
        outputs = queries + cap_rows * ld
        sums = outputs + cap_rows * ld
        maxima = sums + cap_rows * 64

        _load_queries(q + token * ldq + 4 * head_dim * head * group, ldq, group, head_dim, rows // group, factor, queries, ld)
        n_rows = (rows - 1) // max_rows * max_rows
        n_rows += rounded(rows - n_rows)
        for r in range(rows, n_rows):
            _fill(queries + r * ld, (head_dim + 15) // 16, np.float32(0))
        for r in range(n_rows):
            _fill(outputs + r * ld, (v_padded + 1) // 2 * 2, np.float32(0))
        _fill(sums, n_rows, np.float32(0))
        _fill(maxima, (n_rows + max_rows - 1) // max_rows, np.float32(LOWEST))

        keys, next_keys = scratch + KEYS, scratch + KEYS + LIST
        list_block(keys, table, cache, page_bytes, page_size, key_group, head_at, low, min(low + BLOCK, high))
        for b0 in range(low, high, BLOCK):
            b1 = min(b0 + BLOCK, high)
            values = scratch + VALUES
            list_block(values, table, cache, page_bytes, page_size, 16 * value_step, head_at + key_bytes, b0, b1)
            soon = b1 if b1 < high else b0
            list_block(next_keys, table, cache, page_bytes, page_size, key_group, head_at, soon, min(soon + BLOCK, high))
            for r in range(0, rows, max_rows):
                m = min(max_rows, rows - r)
                n = min(b1, position + (r + m - 1) // group + 1) - b0
                if n <= 0 or (window > 0 and b1 <= position + r // group - window + 1):
                    continue
                n_vectors = (n + 15) // 16
                for v in range(0, n_vectors, vectors):
                    tile(
                        m, queries + r * ld, keys + 8 * v, 8, 0, 0, head_dim, 16 * size, scratch + SCORES + 64 * v, 0,
                        values - keys, 0,
                    )  # fmt: skip
                soften(
                    scratch, m, n_vectors, maxima + r // max_rows * 64, sums + 64 * r, position + r // group - b0,
                    r % group, group, window, softcap,
                )  # fmt: skip
                for v in range(0, v_padded, vectors):
                    tile(
                        m, scratch + SCORES, values, 0, 16 * size * v, 16 * size if v + 1 < v_padded else 0, n,
                        value_step, outputs + r * ld + 64 * v, scratch + ALPHA, next_keys - values, 256 * size * v,
                    )  # fmt: skip
            keys, next_keys = next_keys, keys

    @register_jitable
    def finish(args, scratch, head, token, rows):
        """Divide by the sums, sinks included, and write the outputs of a whole tile."""
        out = load_i64(args + 32)
        ldo = load_i64(args + 40)
        group = load_i64(args + 80)
        v_head_dim = load_i64(args + 96)
        sinks = load_i64(args + 144)
        cap_rows = load_i64(args + 168)
        outputs = scratch + queries_at + cap_rows * ld
        sums = outputs + cap_rows * ld
        maxima = sums + cap_rows * 64
        for r in range(rows):
            h = head * group + r % group
            total = hsum_f32(load_f32x16(sums + 64 * r))
            factor = np.float32(1) / total
            if sinks != 0:
                best = load_f32(maxima + 64 * (r // max_rows) + 4 * (r % max_rows))
                sink = load_f32(sinks + 4 * h) * np.float32(LOG2_E)
                top = max(best, sink)
                shrink = _exp2(best - top)
                factor = shrink / (total * shrink + _exp2(sink - top))
            _write(out + (token + r // group) * ldo + 4 * v_head_dim * h, outputs + r * ld, v_head_dim, factor)

    @register_jitable
    def keep_part(args, scratch, part, rows):
        """Outputs, maxima and sums of a part, for the one who combines."""
        v_padded = (load_i64(args + 96) + 15) // 16
        cap_rows = load_i64(args + 168)
        outputs = scratch + queries_at + cap_rows * ld
        sums = outputs + cap_rows * ld
        maxima = sums + cap_rows * 64
        for r in range(rows):
            for v in range(v_padded):
                store_f32x16(part + r * ld + 64 * v, load_f32x16(outputs + r * ld + 64 * v))
            store_f32(part + r * ld + 4 * width, load_f32(maxima + 64 * (r // max_rows) + 4 * (r % max_rows)))
            store_f32(part + r * ld + 4 * width + 4, hsum_f32(load_f32x16(sums + 64 * r)))

    @register_jitable
    def combine_tile(args, parts, n_parts, part_bytes, head, token, rows):
        out = load_i64(args + 32)
        ldo = load_i64(args + 40)
        group = load_i64(args + 80)
        v_head_dim = load_i64(args + 96)
        sinks = load_i64(args + 144)
        for r in range(rows):
            h = head * group + r % group
            sink = sinks + 4 * h if sinks != 0 else 0
            dst = out + (token + r // group) * ldo + 4 * v_head_dim * h
            _combine(parts + r * ld, n_parts, part_bytes, 4 * width, v_head_dim, sink, dst)

    def kernel(args, thread, n_threads):
        step = load_i64(args)
        counter = load_i64(args + 8)
        n_kv = load_i64(args + 72)
        group = load_i64(args + 80)
        window = load_i64(args + 128)
        scratch = load_i64(args + 152) + thread * load_i64(args + 160)
        part_bytes = load_i64(args + 168) * ld
        parts = load_i64(args + 176)
        tickets = load_i64(args + 184)
        n_seqs = load_i64(step + 32)
        positions = load_i64(step + 48)
        spans = load_i64(step + 64)
        tables = load_i64(step + 72)
        table_bytes = load_i64(step + 80)
        tokens = _tile_tokens(group)
        target = _target_cost(step, group, n_kv, window, n_threads)
        for i in range(16):
            store_f32(scratch + IOTA + 4 * i, np.float32(i))

        # Items are numbered by sequence, tile (the last, heaviest, first), kv head, part; each thread walks along.
        s, i_tile, base, count = -1, 0, 0, 0
        first, n, p0 = 0, 0, 0
        part, n_parts, part_size, ticket = 0, 1, 0, 0
        low, high = 0, 0
        while True:
            item = atomic_add(counter, 1)
            while s < n_seqs and item >= base + count:
                base += count
                if n_parts > 1:
                    part += count
                    ticket += n_kv
                count, n_parts = 0, 1
                i_tile -= 1
                if i_tile < 0:
                    s += 1
                    if s == n_seqs:
                        break
                    first = load_i32(spans + 8 * s)
                    n = load_i32(spans + 8 * s + 4)
                    p0 = load_i32(positions + 4 * first)
                    i_tile = (n + tokens - 1) // tokens
                else:
                    t = i_tile * tokens
                    high = min(p0 + t + tokens, p0 + n)
                    low = _first_seen(p0 + t, window)
                    n_parts, part_size = _parts(high - low, (high - p0 - t) * group, target)
                    count = n_kv * n_parts
            if s >= n_seqs:
                break
            i = item - base
            head = i // n_parts
            t = i_tile * tokens
            rows = (high - p0 - t) * group
            start = low + i % n_parts * part_size
            stop = min(start + part_size, high)
            interrupted = load_i64(step + 104) != 0
            if not interrupted:
                attend_range(args, scratch, tables + s * table_bytes, head, first + t, rows, p0 + t, start, stop)
            if n_parts == 1:
                if not interrupted:
                    finish(args, scratch, head, first + t, rows)
            else:
                if not interrupted:
                    keep_part(args, scratch, parts + (part + i) * part_bytes, rows)
                if atomic_add(tickets + 8 * (ticket + head), 1) == n_parts - 1:
                    atomic_store(tickets + 8 * (ticket + head), 0)
                    if not interrupted:
                        mine = parts + (part + head * n_parts) * part_bytes
                        combine_tile(args, mine, n_parts, part_bytes, head, first + t, rows)

    return kernel
