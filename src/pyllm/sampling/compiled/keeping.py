"""Leaving out candidates by a threshold. Those that stay keep their order: few become a list; of many, the others'
logits become -inf, since no processor takes long for that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba.extending import register_jitable

from pyllm.jit.simd import (
    hmax_f32,
    load_f32,
    load_f32x16,
    load_i32,
    load_i64,
    max_f32,
    select_lt,
    splat_f32,
    store_f32,
    store_f32x16,
    store_i32,
    store_i64,
)
from pyllm.sampling.compiled import slots
from pyllm.sampling.compiled.mapping import mapper
from pyllm.sampling.compiled.state import (
    LARGEST,
    NOTHING,
    choose_lanes,
    distances,
    lanes_above,
    lanes_from,
    logit,
    low_zeros,
    set_dense,
    set_list,
)

_FEW = 4
"""A list of all tokens' logits holds at most one in 2^4."""


@register_jitable
def _from(v, low, unused, unused_too, high):
    return lanes_from(v, low)


@register_jitable
def _within(v, center, side, unused, high):
    return lanes_from(high, distances(v, center, side))


@register_jitable
def _between(v, center, side, low, high):
    d = distances(v, center, side)
    return lanes_from(high, d) & lanes_above(d, low)


def _gatherer(inside: Any) -> Callable[..., int]:
    """The function that appends the logits inside a, b, c, d, from `start` to `end`, and, unless `to_ids`
    is 0, their ids. (number of all that were appended, which stops it above `room`)."""

    @register_jitable
    def gather(x, ids, start, end, a1, b1, c1, d1, to_x, to_ids, kept, room):
        a, b, c, d, i = splat_f32(a1), splat_f32(b1), splat_f32(c1), splat_f32(d1), start
        while i < end and kept <= room:
            at, bits = x + 4 * i, 0
            if i + 64 <= end:
                bits = inside(load_f32x16(at), a, b, c, d) | (inside(load_f32x16(at + 64), a, b, c, d) << 16)
                bits |= inside(load_f32x16(at + 128), a, b, c, d) << 32
                bits |= inside(load_f32x16(at + 192), a, b, c, d) << 48
            else:
                for j in range(end - i):
                    bits |= (inside(splat_f32(load_f32(at + 4 * j)), a, b, c, d) & 1) << j
            while bits != 0:
                j = i + low_zeros(bits)
                bits &= bits - 1
                store_f32(to_x + 4 * kept, load_f32(x + 4 * j))
                if to_ids != 0:
                    store_i32(to_ids + 4 * kept, load_i32(ids + 4 * j) if ids != 0 else j)
                kept += 1
            i += 64
        return kept

    return gather


def _keeper(inside: Any) -> Callable[..., None]:
    """The function of a state that keeps the candidates up to the place `last` that are inside a, b, c, d, and those
    after it that are inside a, b, c, d_after."""
    gather = _gatherer(inside)

    @register_jitable
    def keeps_many(x, n, a1, b1, c1, d, d_after, last):
        """Whether some logits tell that a list is no use."""
        a, b, c, found = splat_f32(a1), splat_f32(b1), splat_f32(c1), 0
        step = n >> 6
        for i in range(0, 64 * step, max(step, 1)):
            found += inside(splat_f32(load_f32(x + 4 * i)), a, b, c, splat_f32(d if i <= last else d_after)) & 1
        return found > 64 >> _FEW

    @register_jitable
    def hide(x, start, end, a1, b1, c1, d1, to):
        a, b, c, d, nothing = splat_f32(a1), splat_f32(b1), splat_f32(c1), splat_f32(d1), splat_f32(NOTHING)
        full = start + (end - start) // 16 * 16
        for i in range(start, full, 16):
            v = load_f32x16(x + 4 * i)
            store_f32x16(to + 4 * i, choose_lanes(inside(v, a, b, c, d), v, nothing))
        for i in range(full, end):
            value = load_f32(x + 4 * i)
            store_f32(to + 4 * i, value if inside(splat_f32(value), a, b, c, d) & 1 else NOTHING)

    @register_jitable
    def keep(s, a, b, c, d, d_after, last):
        x, ids, n = load_i64(s + slots.X), load_i64(s + slots.IDS), load_i64(s + slots.N)
        to_x, to_ids, order = load_i64(s + slots.LIST_X), load_i64(s + slots.LIST_IDS), load_i64(s + slots.ORDER)
        room = n if ids != 0 else n >> _FEW
        if ids != 0 or not keeps_many(x, n, a, b, c, d, d_after, last):
            kept = gather(x, ids, 0, last + 1, a, b, c, d, to_x, to_ids, 0, room)
            kept = gather(x, ids, last + 1, n, a, b, c, d_after, to_x, to_ids, kept, room)
            if kept <= room:
                set_list(s, kept, order)
                return
        to = x if x == load_i64(s + slots.COPY_2) else load_i64(s + slots.COPY)
        hide(x, 0, last + 1, a, b, c, d, to)
        hide(x, last + 1, n, a, b, c, d_after, to)
        set_dense(s, to, n)
        store_i64(s + slots.ORDER, order)
        store_i64(s + slots.OWN, 1)

    return keep


_keep_from, _keep_within, _gather_between = _keeper(_from), _keeper(_within), _gatherer(_between)


@register_jitable
def keep_at_least(s, threshold):
    """Keep the candidates whose logit is at least `threshold`, rounded to float32, which the largest's is."""
    x, n, least = load_i64(s + slots.X), load_i64(s + slots.N), np.float32(threshold)
    if load_i64(s + slots.ORDER) == slots.SORTED:
        kept = 1
        while kept < n and load_f32(x + 4 * kept) >= least:
            kept += 1
        store_i64(s + slots.N, kept)
        return
    _keep_from(s, least, least, least, least, least, n - 1)


@register_jitable
def keep_within(s, center, side, high, high_after, last):
    """Keep the candidates up to the place `last` whose distance is at most `high`, and those after it whose distance is
    at most `high_after`."""
    _keep_within(s, center, side, high, high, high_after, last)


@register_jitable
def copy_between(x, n, center, side, low, high, to):
    """Copy the logits whose distance is above `low` and at most `high`; how many there are."""
    return _gather_between(x, 0, 0, n, center, side, low, high, to, 0, 0, n)


@register_jitable
def _below(x, limit, b, c):
    return select_lt(x, splat_f32(limit), x, splat_f32(NOTHING))


_keep_below = mapper(_below)


@register_jitable
def _last_of_least(x, n, limit):
    """Place of the least logit that is at least `limit`, of equals the last; -1 where there is none."""
    least, block, far, t = LARGEST, -1, splat_f32(NOTHING), splat_f32(limit)
    for start in range(0, n, slots.SUM_BLOCK):
        end = min(start + slots.SUM_BLOCK, n)
        full, highest = start + (end - start) // 16 * 16, far
        for i in range(start, full, 16):
            v = load_f32x16(x + 4 * i)
            highest = max_f32(select_lt(v, t, far, splat_f32(np.float32(0)) - v), highest)
        own = -hmax_f32(highest)
        for i in range(full, end):
            if load_f32(x + 4 * i) >= limit:
                own = min(own, load_f32(x + 4 * i))
        if own <= least:
            least, block = own, start
    if block >= 0:
        for i in range(min(block + slots.SUM_BLOCK, n) - 1, block - 1, -1):
            if load_f32(x + 4 * i) == least:
                return i
    return -1


@register_jitable
def drop_all_but_least(s, threshold):
    """Of the candidates whose logit is at least `threshold`, leave out all but the least; of equals, the last stays."""
    limit = np.float32(max(threshold, np.float64(-LARGEST)))
    x, order = load_i64(s + slots.X), load_i64(s + slots.ORDER)
    place = _last_of_least(x, load_i64(s + slots.N), limit)
    if place < 0:
        return
    value = logit(x, place)
    _keep_below(s, limit, limit, limit)
    store_f32(load_i64(s + slots.X) + 4 * place, value)
    if load_i64(s + slots.IDS) != 0:
        store_i64(s + slots.ORDER, slots.AS_THEY_ARE)
        keep_at_least(s, np.float64(-LARGEST))
        store_i64(s + slots.ORDER, order)
