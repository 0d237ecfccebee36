"""Paged attention with an online softmax, for any mix of prefill chunks and decode tokens.

A work item is one kv head, a tile of rows (tokens x query heads that share the kv head), and a range of positions. Keys
and values are read in blocks; each block serves all rows of the tile. The long range of a generated token is divided:
parts go to a shared buffer, and the thread that finishes a tile's last part combines them. `kernels/kv.py` describes
the cache.

A row's result depends on its own sequence alone, to the last bit: blocks end at multiples of their size, parts follow
from a generated token's position, and rows are summed alike in tiles of any size (`attention_tiles.py`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import register_jitable

from pyllm.backends.cpu.arguments.attention import Attend
from pyllm.backends.cpu.kernels.attention_reach import first_seen, last_seen
from pyllm.backends.cpu.kernels.attention_scratch import (
    BLOCK,
    GENERATED,
    MAX_PARTS,
    PART,
    SOURCE,
    TILE_ROWS,
    Scratch,
)
from pyllm.backends.cpu.kernels.attention_softmax import LOG2_E, LOWEST, combine, exp2, fill, softener, write_scaled
from pyllm.backends.cpu.kernels.attention_tiles import build, tile_shape
from pyllm.backends.cpu.kernels.attention_wide import STEP_ROWS, wide_engine
from pyllm.backends.cpu.kernels.kv import key_unit
from pyllm.backends.cpu.table import SOURCES
from pyllm.jit.reader import reader
from pyllm.jit.simd import (
    atomic_add,
    atomic_store,
    hsum_f32,
    load_f32,
    load_f32x16,
    load_i32,
    load_i64,
    store_f32,
    store_f32x16,
    store_i64,
)
from pyllm.jit.simd.amx import tile_release, tile_shapes

read = reader(Attend)

WIDE_ROWS = 24
"""Smallest number of rows for which converting keys and values to bfloat16 pays."""


@register_jitable
def _parts(length):
    """Number of parts of a generated token's range, and positions of a part."""
    n = min((length + PART - 1) // PART, MAX_PARTS)
    size = ((length + n - 1) // n + 31) // 32 * 32
    return (length + size - 1) // size, size


@register_jitable
def _list_block(list, table, base, page_bytes, page_size, unit_bytes, odd_bytes, b0, b1):
    """An address for each group of 16 positions b0 .. b1: `base` is where its head has them in page 0, unit_bytes lie
    between units of `key_unit` positions, odd_bytes between the two groups of a unit."""
    table += 4 * (b0 // page_size)
    within = b0 % page_size
    unit = key_unit(page_size)
    at = within // unit * unit_bytes
    odd = 0
    n = (b1 - b0 + 15) // 16
    for g in range(n):
        store_i64(list + 8 * g, base + load_i32(table) * page_bytes + at + odd * odd_bytes)
        if odd == 0 and unit == 32:
            odd = 1
        else:
            odd = 0
            at += unit_bytes
        within += 16
        if within == page_size:
            table += 4
            within = at = 0
    if n % 2 == 1:  # a pair needs two addresses
        store_i64(list + 8 * n, load_i64(list + 8 * (n - 1)))


def _narrow_engine(kv: str, places: Scratch) -> tuple[Any, Any, Any, Any]:
    """Functions that compute a tile from the cache as it is: `start` once, `begin` for each block, then for some rows
    of the tile `scores` (of the block's first n_vectors groups of positions) and `weigh` (outputs * alpha + weights x
    values)."""
    ld, scores_at, alpha = places.ld, places.scores, places.alpha
    keys_at, values_at = places.keys, places.values
    keys_ahead, values_ahead = places.keys_ahead, places.values_ahead
    size = 2 if kv == "f16" else 4
    shape = tile_shape()
    tile = build(shape, kv, ld)
    step_rows, vectors = shape.rows[-1], shape.vectors

    @register_jitable
    def start(scratch, queries, rows, head_dim, cap_rows):
        for r in range(rows, min(rows + step_rows, cap_rows)):
            fill(queries + r * ld, (head_dim + 15) // 16, 0.0)

    @register_jitable
    def begin(scratch, page_size, n, head_dim, v_padded):
        pass

    @register_jitable
    def scores(scratch, m, queries, r, page_size, n_vectors, head_dim, cap_rows):
        step = key_unit(page_size) * size
        for v in range(0, n_vectors, vectors):
            tile(
                m, queries + r * ld, scratch + keys_at + 8 * v, 8, 0, 0, head_dim, step, scratch + scores_at + 64 * v,
                0, values_ahead - keys_at, 0,
            )  # fmt: skip

    @register_jitable
    def weigh(scratch, m, outputs, page_size, n, v_padded):
        for v in range(0, v_padded, vectors):
            tile(
                m, scratch + scores_at, scratch + values_at, 0, (v // 2 * 2 * page_size + v % 2) * 16 * size, 16 * size,
                n, 32 * size, outputs + 64 * v, scratch + alpha, keys_ahead - values_at, 256 * size * v,
            )  # fmt: skip

    return start, begin, scores, weigh


def _range(kv: str, places: Scratch, wide: bool) -> Any:
    """Function that computes the rows of one tile over positions low .. high - 1: outputs, sums and maxima in scratch,
    not yet divided. `end`: the position after the sequence's last in this step."""
    ld, size = places.ld, 2 if kv == "f16" else 4
    start, begin, scores, weigh = wide_engine(places) if wide else _narrow_engine(kv, places)
    step_rows = STEP_ROWS if wide else tile_shape().rows[-1]
    # The first rows of a block are fewer than fit: only such tiles fetch the next block ahead.
    first_rows = STEP_ROWS if wide else tile_shape().rows[-1] // 2
    soften = softener(places, packed=wide)
    rows_at, keys_at, values_at = places.rows, places.keys, places.values
    keys_ahead, values_ahead = places.keys_ahead, places.values_ahead

    @register_jitable
    def attend_range(args, scratch, table, head, token, rows, position, end, low, high):
        a = read(args)
        v_padded = (a.v_head_dim + 31) // 32 * 2
        keys = a.cache + head * a.head_bytes
        values = keys + a.key_bytes
        unit = key_unit(a.page_size)
        key_bytes = (a.head_dim + 15) // 16 * 16 * size * unit
        value_bytes = 16 * size * v_padded * unit
        queries = scratch + rows_at
        outputs = queries + a.cap_rows * ld
        sums = outputs + a.cap_rows * ld
        maxima = sums + a.cap_rows * 64

        slopes = a.slopes + 4 * head * a.group if a.slopes != 0 else 0
        biases = a.biases + a.ld_biases * head * a.group if a.biases != 0 else 0
        q = a.q + token * a.ld_q + 4 * a.head_dim * head * a.group
        factor = np.float32(a.scale * (1.0 if a.softcap > 0.0 else LOG2_E))
        row = queries
        for _ in range(rows // a.group):
            for g in range(a.group):
                fill(row + a.head_dim // 16 * 64, (a.head_dim + 31) // 32 * 2 - a.head_dim // 16, 0.0)
                write_scaled(row, q + g * 4 * a.head_dim, a.head_dim, factor)
                row += ld
            q += a.ld_q
        start(scratch, queries, rows, a.head_dim, a.cap_rows)
        for r in range(min(rows + 31, a.cap_rows)):
            fill(outputs + r * ld, v_padded, 0.0)
        fill(sums, rows, 0.0)
        fill(maxima, rows // 16 + 3, LOWEST)

        b1 = low
        while b1 < high:
            b0 = b1
            b1 = min(b0 // BLOCK * BLOCK + BLOCK, high)
            _list_block(scratch + keys_at, table, keys, a.page_bytes, a.page_size, key_bytes, 16 * size, b0, b1)
            _list_block(
                scratch + values_at, table, values, a.page_bytes, a.page_size, 32 * size * unit, 512 * size, b0, b1
            )
            _list_block(
                scratch + values_ahead, table, values, a.page_bytes, a.page_size, value_bytes, value_bytes // 2, b0, b1
            )
            soon = b1 if b1 < high else b0
            _list_block(
                scratch + keys_ahead, table, keys, a.page_bytes, a.page_size, key_bytes, key_bytes // 2, soon,
                min(soon + BLOCK, high),
            )  # fmt: skip
            begin(scratch, a.page_size, b1 - b0, a.head_dim, v_padded)
            next_r = 0
            while next_r < rows:
                r = next_r
                m = min(step_rows if r > 0 else first_rows, rows - r)
                next_r = r + m
                n = min(b1, last_seen(position + (r + m - 1) // a.group, end, a.window, a.reach) + 1) - b0
                if n <= 0 or b1 <= first_seen(position + r // a.group, a.window, a.reach):
                    continue
                n_vectors = (n + 15) // 16
                scores(scratch, m, queries, r, a.page_size, n_vectors, a.head_dim, a.cap_rows)
                for h in range(0, m, 16):
                    at = r + h
                    soften(
                        scratch, h, min(16, m - h), n_vectors, maxima + 4 * at, sums + 64 * at, b0,
                        position + at // a.group, end, at % a.group, a.group, a.window, a.reach, a.softcap, slopes,
                        biases, a.ld_biases, a.far,
                    )  # fmt: skip
                weigh(scratch, m, outputs + r * ld, a.page_size, n, v_padded)

    return attend_range


def _endings(places: Scratch) -> tuple[Any, Any, Any]:
    """Functions that finish a whole tile, store a part, and combine parts."""
    ld, tail, rows_at = places.ld, 4 * places.width, places.rows

    @register_jitable
    def finish(args, scratch, head, token, rows):
        """Divide by the sums, sinks included, and write the outputs of a whole tile."""
        a = read(args)
        out = a.y
        outputs = scratch + rows_at + a.cap_rows * ld
        sums = outputs + a.cap_rows * ld
        maxima = sums + a.cap_rows * 64
        out += token * a.ld_y + 4 * a.v_head_dim * head * a.group
        for r in range(0, rows, a.group):
            for g in range(a.group):
                total = hsum_f32(load_f32x16(sums + 64 * (r + g)))
                factor = np.float32(1) / total
                if a.sinks != 0:
                    best = load_f32(maxima + 4 * (r + g))
                    sink = load_f32(a.sinks + 4 * (head * a.group + g)) * np.float32(LOG2_E)
                    top = max(best, sink)
                    shrink = exp2(best - top)
                    factor = shrink / (total * shrink + exp2(sink - top))
                write_scaled(out + 4 * a.v_head_dim * g, outputs + (r + g) * ld, a.v_head_dim, factor)
            out += a.ld_y

    @register_jitable
    def keep_part(args, scratch, part, rows):
        """Store outputs, maxima and sums of a part, for the combining thread."""
        a = read(args)
        v_padded = (a.v_head_dim + 15) // 16
        outputs = scratch + rows_at + a.cap_rows * ld
        sums = outputs + a.cap_rows * ld
        maxima = sums + a.cap_rows * 64
        for r in range(rows):
            for v in range(v_padded):
                store_f32x16(part + r * ld + 64 * v, load_f32x16(outputs + r * ld + 64 * v))
            store_f32(part + r * ld + tail, load_f32(maxima + 4 * r))
            store_f32(part + r * ld + tail + 4, hsum_f32(load_f32x16(sums + 64 * r)))

    @register_jitable
    def combine_tile(args, parts, n_parts, part_bytes, head, token, rows):
        a = read(args)
        out = a.y
        for r in range(rows):
            h = head * a.group + r % a.group
            sink = a.sinks + 4 * h if a.sinks != 0 else 0
            dst = out + (token + r // a.group) * a.ld_y + 4 * a.v_head_dim * h
            combine(parts + r * ld, n_parts, part_bytes, tail, a.v_head_dim, sink, dst)

    return finish, keep_part, combine_tile


def attend(kv: str, width: int) -> Any:
    """Attention over a cache of type `kv`. `width`: multiple of 128, at least head_dim and v_head_dim."""
    return _kernel(kv, Scratch(width, False))


def attend_wide(width: int) -> Any:
    """`attend` for a float16 cache, with AMX tiles where there are enough rows."""
    return _kernel("f16", Scratch(width, True))


def _kernel(kv: str, places: Scratch) -> Any:
    wide, ld, tile_rows = places.wide, places.ld, TILE_ROWS[places.wide]
    attend_range = _range(kv, places, False)
    attend_wide_range = _range(kv, places, True) if wide else attend_range
    finish, keep_part, combine_tile = _endings(places)
    iota, shapes = places.iota, places.tile_shapes

    def kernel(args, thread, n_threads):
        a = read(args)
        scratch = a.scratch + thread * a.ld_scratch
        part_bytes = a.group * ld  # one token's rows
        n_seqs = load_i64(a.step + 32)
        positions = load_i64(a.step + 48)
        spans = load_i64(a.step + 64)
        tables = load_i64(a.step + 72)
        table_bytes = load_i64(a.step + 80)
        sources = load_i64(a.step + 8 * SOURCES)
        tokens = max(1, tile_rows // a.group)
        n_generated = load_i64(a.step + 8 * GENERATED)
        for i in range(16):
            store_f32(scratch + iota + 4 * i, np.float32(i))
        if wide:
            tile_shapes(scratch + shapes, 16, 16)

        # Items are numbered by sequence, tile (the last, heaviest, first), kv head, part; each thread walks along.
        s, i_tile, base, count = -1, 0, 0, 0
        first, n, p0, end, size = 0, 0, 0, 0, tokens
        part, n_parts, part_size, ticket = 0, 1, 0, 0
        low, high = 0, 0
        while True:
            item = atomic_add(a.counter, 1)
            while s < n_seqs and item >= base + count:
                base += count
                if n_parts > 1:
                    part += count
                    ticket += a.n_kv
                count, n_parts = 0, 1
                i_tile -= 1
                if i_tile < 0:
                    s += 1
                    if s == n_seqs:
                        break
                    first = load_i32(spans + 8 * s)
                    n = load_i32(spans + 8 * s + 4)
                    p0 = load_i32(positions + 4 * first)
                    end = load_i32(sources + 4 * s) if a.reach == SOURCE else p0 + n
                    # Parts follow from a generated token's own position, so drafts share no tiles.
                    size = 1 if first < n_generated else tokens
                    i_tile = (n + size - 1) // size
                else:
                    t = i_tile * size
                    high = last_seen(min(p0 + t + size, p0 + n) - 1, end, a.window, a.reach) + 1
                    low = first_seen(p0 + t, a.window, a.reach) // 32 * 32  # a pair of groups
                    part_size = high - low
                    if first < n_generated:
                        n_parts, part_size = _parts(high - low)
                    count = a.n_kv * n_parts
            if s >= n_seqs:
                break
            i = item - base
            head = i // n_parts
            t = i_tile * size
            rows = min(size, n - t) * a.group
            start = low + i % n_parts * part_size
            stop = min(start + part_size, high)
            interrupted = load_i64(a.step + 104) != 0
            table = tables + s * table_bytes
            if not interrupted:
                if wide and rows >= WIDE_ROWS:
                    attend_wide_range(args, scratch, table, head, first + t, rows, p0 + t, end, start, stop)
                else:
                    attend_range(args, scratch, table, head, first + t, rows, p0 + t, end, start, stop)
            if n_parts == 1:
                if not interrupted:
                    finish(args, scratch, head, first + t, rows)
            else:
                if not interrupted:
                    keep_part(args, scratch, a.parts + (part + i) * part_bytes, rows)
                if atomic_add(a.tickets + 8 * (ticket + head), 1) == n_parts - 1:
                    atomic_store(a.tickets + 8 * (ticket + head), 0)
                    if not interrupted:
                        mine = a.parts + (part + head * n_parts) * part_bytes
                        combine_tile(args, mine, n_parts, part_bytes, head, first + t, rows)
        if wide:
            tile_release()

    return kernel
