"""Drawing one of the candidates by a random number, and the most likely one."""

from __future__ import annotations

import numpy as np
from numba.extending import register_jitable

from pyllm.jit.simd import (
    hmax_f32,
    load_f32,
    load_f32x16,
    load_f64,
    load_i32,
    load_i64,
    max_f32,
    splat_f32,
    store_f64,
    store_i64,
)
from pyllm.sampling.compiled import slots
from pyllm.sampling.compiled.cut import FROM_TOP, find_cut, place_of_cut
from pyllm.sampling.compiled.sorting import key_of
from pyllm.sampling.compiled.state import LARGEST, NOTHING, logit, top_of
from pyllm.sampling.compiled.sums import sum_exp, weight_of


@register_jitable
def _choose(s, place):
    ids = load_i64(s + slots.IDS)
    store_i64(s + slots.TOKEN, load_i32(ids + 4 * place) if ids != 0 else place)


@register_jitable
def _find_in_order(s, top):
    """The place of the candidate at quantile U, were they sorted."""
    center = np.float32(0)
    high, before, goal = find_cut(s, center, FROM_TOP, False, load_f64(s + slots.U), True, True)
    place = place_of_cut(s, center, FROM_TOP, False, high, before, goal, True)
    # There is none where sums differ by their rounding; a most likely one does as well.
    return place if place >= 0 else place_of_cut(s, center, FROM_TOP, False, -top, 0.0, 0.0, True)


@register_jitable
def draw(s):
    """Choose the candidate at quantile U of the distribution, candidates in their order; its place, -1 for none."""
    x, n = load_i64(s + slots.X), load_i64(s + slots.N)
    top64 = top_of(s)
    if not top64 > -np.inf:
        return -1
    if load_i64(s + slots.ORDER) == slots.TO_SORT:
        chosen = _find_in_order(s, np.float32(top64))
        _choose(s, chosen)
        return chosen
    top, sums, total, blocks = np.float32(top64), load_i64(s + slots.SUMS), 0.0, 0
    for start in range(0, n, slots.SUM_BLOCK):
        mass = sum_exp(x + 4 * start, min(slots.SUM_BLOCK, n - start), top)
        store_f64(sums + 8 * blocks, mass)
        total += mass
        blocks += 1
    goal, b, chosen = load_f64(s + slots.U) * total, 0, -1
    # The block, then the one in it; rounding never leads to one without weight.
    last = 0
    for i in range(blocks):
        if load_f64(sums + 8 * i) > 0:
            last = i
    while b < last and goal >= load_f64(sums + 8 * b):
        goal -= load_f64(sums + 8 * b)
        b += 1
    start = b * slots.SUM_BLOCK
    end = min(start + slots.SUM_BLOCK, n)
    for i in range(start, end):
        weight = np.float64(weight_of(load_f32(x + 4 * i), top))
        if weight > 0:
            chosen = i
            if goal < weight:
                break
            goal -= weight
    _choose(s, chosen)
    return chosen


@register_jitable
def choose_likeliest(s):
    """Choose the candidate with the largest logit, of equals that of the lowest id."""
    x, n = load_i64(s + slots.X), load_i64(s + slots.N)
    ids = load_i64(s + slots.IDS)
    if ids != 0:
        best, place = 0, -1
        for i in range(n):
            if logit(x, i) > NOTHING:
                key = key_of(min(logit(x, i), LARGEST), load_i32(ids + 4 * i))
                if place < 0 or key < best:
                    best, place = key, i
        if place >= 0:
            _choose(s, place)
        return
    # Which block of 256 holds the first of the largest, then where in it.
    top, at, i = NOTHING, -1, 0
    while i + 256 <= n:
        a, b = splat_f32(NOTHING), splat_f32(NOTHING)
        for j in range(i, i + 256, 64):
            a, b = max_f32(load_f32x16(x + 4 * j), a), max_f32(load_f32x16(x + 4 * j + 64), b)
            a, b = max_f32(load_f32x16(x + 4 * j + 128), a), max_f32(load_f32x16(x + 4 * j + 192), b)
        largest = min(hmax_f32(max_f32(a, b)), LARGEST)
        if largest > top:
            top, at = largest, i
        i += 256
    end = at + 256
    while i < n:
        if load_f32(x + 4 * i) > top and top < LARGEST:
            top, at, end = min(load_f32(x + 4 * i), LARGEST), i, i + 1
        i += 1
    if at < 0:
        return
    while at < end - 1 and not load_f32(x + 4 * at) >= top:
        at += 1
    _choose(s, at)
