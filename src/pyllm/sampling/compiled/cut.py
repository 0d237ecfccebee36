"""Where candidates are cut off: the distance within which they have a share of the probability.

A pass sums the weights within six distances at once. Those of the next pass are near to where a sample of what lies
between two of them has the share. What lies there is copied as soon as it is a small part of all. The search ends with
a single float32; nothing is sorted but samples.
"""

from __future__ import annotations

import numpy as np
from numba.extending import register_jitable

from pyllm.jit.simd import (
    first_lane,
    hsum_f32,
    load_f32x16,
    load_f64,
    load_i64,
    splat_f32,
    store_f32,
    store_i64,
    zero_f32,
)
from pyllm.sampling.compiled import slots
from pyllm.sampling.compiled.keeping import copy_between
from pyllm.sampling.compiled.sorting import LOW, sort_keys
from pyllm.sampling.compiled.state import (
    LARGEST,
    NOTHING,
    bits_float,
    choose_lanes,
    distance,
    distances,
    float_bits,
    float_order,
    lanes_equal,
    logit,
    ordered_float,
    top_of,
)
from pyllm.sampling.compiled.sums import N_LIMITS, amounts, sum_ones, sum_weights

BOTH_SIDES, FROM_TOP = np.float32(1), np.float32(-1)
"""Sides: the distance is that from the center, or, with the center 0, that from the largest logit."""
_SAMPLE, _PROBES = 96, 256
_SMALL_PART = 12
_FIXED = (2.0, 5.0, 10.0)
"""Distances of the first pass, besides three of the sample, which says nothing of few that have much of the weight."""
_FIRST_OFFSETS = (-7, 0, 7)
_OFFSETS = (-15, -5, 0, 5, 15)
_LIMITS, _LIMIT_ORDERS = 64, 128
"""Where a pass's distances are in SUMS, after its sums: float32 [N_LIMITS], and their `float_order`, int64."""


@register_jitable
def reaches(mass, goal, strictly):
    return mass > goal if strictly else mass >= goal


@register_jitable
def _amount(value, top, counted):
    return np.float64(first_lane(amounts(splat_f32(value), splat_f32(top), counted)))


@register_jitable
def _sample(s, x, n, center, side, low, high):
    """KEYS of some candidates that are farther than `low` and not farther than `high`, nearest first: the order
    of the distance, and the bits of the logit. How many, and of how many that were looked at."""
    keys = load_i64(s + slots.KEYS)
    step = int(0.618 * n) | 1 if n > _PROBES else 1
    place, found, looked = 0, 0, 0
    while found < _SAMPLE and looked < min(n, _PROBES):
        value = logit(x, place)
        far = distance(value, center, side)
        if low < far and far <= high:
            store_i64(keys + 8 * found, (float_order(far) << 32) | (float_bits(value) & LOW))
            found += 1
        looked += 1
        place += step
        if place >= n:
            place -= n
    sort_keys(keys, found, 0, 0)
    return found, looked


@register_jitable
def _rank(s, found, share, top, counted):
    """Which one of the sample has that share of its weight before it."""
    keys, whole = load_i64(s + slots.KEYS), 0.0
    for i in range(found):
        whole += _amount(bits_float(load_i64(keys + 8 * i)), top, counted)
    rank, so_far = 0, 0.0
    while rank < found - 1:
        so_far += _amount(bits_float(load_i64(keys + 8 * rank)), top, counted)
        if so_far >= share * whole:
            break
        rank += 1
    return rank


@register_jitable
def _place_limits(s, found, rank, low, high, nearest, is_first):
    """The distances of the next pass."""
    keys, limits = load_i64(s + slots.KEYS), load_i64(s + slots.SUMS) + _LIMITS
    orders, at = load_i64(s + slots.SUMS) + _LIMIT_ORDERS, 0
    # Half of all floats that are left: the search ends, however bad the samples are.
    middle = (low + high) >> 1
    if is_first:
        for fixed in _FIXED:
            store_i64(orders + 8 * at, float_order(nearest + np.float32(fixed)))
            at += 1
        for offset in _FIRST_OFFSETS:
            near = load_i64(keys + 8 * min(max(rank + offset, 0), found - 1)) >> 32 if found > 0 else middle
            store_i64(orders + 8 * at, near)
            at += 1
    else:
        store_i64(orders, middle)
        for offset in _OFFSETS:
            at += 1
            near = load_i64(keys + 8 * min(max(rank + offset, 0), found - 1)) >> 32 if found > 0 else middle
            store_i64(orders + 8 * at, near)
    sort_keys(orders, N_LIMITS, 0, 0)
    for j in range(N_LIMITS):
        own = load_i64(orders + 8 * j)
        # What is there twice may be the distance of many: the one just below it tells them from the others.
        if j < N_LIMITS - 1 and own == load_i64(orders + 8 * j + 8):
            own -= 1
            store_i64(orders + 8 * j, own)
        store_f32(limits + 4 * j, ordered_float(own))


@register_jitable
def find_cut(s, center, side, counted, amount, relative, strictly):
    """The least distance within which the candidates' weights, or, if `counted`, their number, reach an amount, or, if
    `relative`, that share of all; LARGEST where they never do. (it, what is nearer, the amount)."""
    x, n, top = load_i64(s + slots.X), load_i64(s + slots.N), np.float32(top_of(s))
    sums, orders = load_i64(s + slots.SUMS), load_i64(s + slots.SUMS) + _LIMIT_ORDERS
    nearest = -top if side < 0 else np.float32(0)
    low, high = float_order(NOTHING), float_order(LARGEST)
    base, before, until = 0.0, 0.0, 0.0
    goal, share, is_first = amount, amount if relative else amount / n, True
    while high - low > 1:
        found, looked = _sample(s, x, n, center, side, ordered_float(low), ordered_float(high))
        if not is_first and found * _SMALL_PART <= looked:
            part = load_i64(s + slots.PART)
            n, x, base = copy_between(x, n, center, side, ordered_float(low), ordered_float(high), part), part, before
            if n == 0:
                break
            found, looked = _sample(s, x, n, center, side, ordered_float(low), ordered_float(high))
        _place_limits(s, found, _rank(s, found, share, top, counted), low, high, nearest, is_first)
        if counted:
            whole = sum_ones(x, n, top, center, side, sums + _LIMITS, sums)
        else:
            whole = sum_weights(x, n, top, center, side, sums + _LIMITS, sums)
        if is_first:
            goal, until = max(amount * whole if relative else amount, 1e-300), whole
            is_first = False
        for j in range(N_LIMITS):
            limit, mass = load_i64(orders + 8 * j), base + load_f64(sums + 8 * j)
            if low < limit and limit < high:
                if reaches(mass, goal, strictly):
                    high, until = limit, mass
                    break
                low, before = limit, mass
        share = (goal - before) / max(until - before, 1e-300)
    return ordered_float(high), before, goal


@register_jitable
def _mass_at(x, n, top, center, side, counted, high):
    """The weights, or the number, of the candidates that are that far from the center."""
    full, c, m, d = n // 16 * 16, splat_f32(center), splat_f32(side), splat_f32(high)
    t, zero = splat_f32(top), zero_f32()
    some = 0
    for i in range(0, full, 16):
        some |= lanes_equal(distances(load_f32x16(x + 4 * i), c, m), d)
    total = zero
    if some != 0:
        for i in range(0, full, 16):
            v = load_f32x16(x + 4 * i)
            total = total + choose_lanes(lanes_equal(distances(v, c, m), d), amounts(v, t, counted), zero)
    mass = np.float64(hsum_f32(total))
    for i in range(full, n):
        if distance(logit(x, i), center, side) == high:
            mass += _amount(logit(x, i), top, counted)
    return mass


@register_jitable
def place_of_cut(s, center, side, counted, high, before, goal, strictly):
    """Of the candidates that are that far from the center, in their order, the one with which `before` comes to the
    goal; the last of them where none does, and -1 where there are none."""
    x, n, top = load_i64(s + slots.X), load_i64(s + slots.N), np.float32(top_of(s))
    block, before_block = -1, before
    for start in range(0, n, slots.SUM_BLOCK):
        mass = _mass_at(x + 4 * start, min(slots.SUM_BLOCK, n - start), top, center, side, counted, high)
        if mass > 0:
            block, before_block = start, before
            before += mass
            if reaches(before, goal, strictly):
                break
    place = -1
    if block >= 0:
        for i in range(block, min(block + slots.SUM_BLOCK, n)):
            if distance(logit(x, i), center, side) == high:
                place = i
                before_block += _amount(logit(x, i), top, counted)
                if reaches(before_block, goal, strictly):
                    break
    return place
