"""Keeping the candidates nearest to a logit that together have a share of the probability."""

from __future__ import annotations

import numpy as np
from numba.extending import register_jitable

from pyllm.jit.simd import (
    load_f32,
    load_f64,
    load_i32,
    load_i64,
    store_f32,
    store_f64,
    store_i32,
    store_i64,
)
from pyllm.sampling.compiled import slots
from pyllm.sampling.compiled.keeping import keep_at_least
from pyllm.sampling.compiled.largest import sort_keys
from pyllm.sampling.compiled.state import LARGEST, float_bits, logit, set_list, top_of
from pyllm.sampling.compiled.sums import DISTANCES, masses, total_of, weigh

_LOW = 0xFFFFFFFF
_ABOVE_ALL = (1 << 63) - 1
_FEW = 48
_BINS = 256
_PER_DISTANCE = np.float32(_BINS / DISTANCES[-1])


@register_jitable
def _reaches(mass, goal, strictly):
    return mass > goal if strictly else mass >= goal


@register_jitable
def _key(x, i, center):
    """An integer that is the smaller, the nearer logit i is to the center; of equally near ones, by place."""
    return (float_bits(min(abs(logit(x, i) - center), LARGEST)) << 32) | i


@register_jitable
def _keep_sorted(s, goal, strictly):
    """Keep the first candidates that reach the goal."""
    n, weights, so_far, kept = load_i64(s + slots.N), load_i64(s + slots.WEIGHTS), 0.0, 0
    while kept < n:
        so_far += np.float64(load_f32(weights + 4 * kept))
        kept += 1
        if _reaches(so_far, goal, strictly):
            break
    store_i64(s + slots.N, kept)


@register_jitable
def _cut(s, keys, n, weights, goal, strictly):
    """The last of the smallest keys whose weights reach the goal; one above all, where they never do. No two keys are
    equal, so that each pivot leaves less to look at."""
    low, high, before = 0, n, 0.0
    while high - low > _FEW:
        first, last = load_i64(keys + 8 * low), load_i64(keys + 8 * (high - 1))
        middle = load_i64(keys + 8 * ((low + high) >> 1))
        pivot = max(min(first, middle), min(max(first, middle), last))
        # Those below the pivot to the left, with their mass.
        at, mass = low, before
        for i in range(low, high):
            key = load_i64(keys + 8 * i)
            if key <= pivot:
                mass += np.float64(load_f32(weights + 4 * (key & _LOW)))
                store_i64(keys + 8 * i, load_i64(keys + 8 * at))
                store_i64(keys + 8 * at, key)
                at += 1
        if _reaches(mass, goal, strictly):
            high = at
        else:
            low, before = at, mass
    sort_keys(keys + 8 * low, high - low, load_i64(s + slots.SPARE_KEYS), load_i64(s + slots.SUMS))
    for i in range(low, high):
        key = load_i64(keys + 8 * i)
        before += np.float64(load_f32(weights + 4 * (key & _LOW)))
        if _reaches(before, goal, strictly):
            return key
    return _ABOVE_ALL


@register_jitable
def _bin(x, i, center):
    return np.int64(min(abs(logit(x, i) - center) * _PER_DISTANCE, np.float32(_BINS - 1)))


@register_jitable
def _keep_list(s, center, goal, strictly):
    """As `keep_nearest`, of a list: the goal is a sum of weights."""
    x, ids, n = load_i64(s + slots.X), load_i64(s + slots.IDS), load_i64(s + slots.N)
    weigh(s)
    keys, weights = load_i64(s + slots.KEYS), load_i64(s + slots.WEIGHTS)
    if load_i64(s + slots.SORTED) != 0 and np.float64(center) == top_of(s):
        _keep_sorted(s, goal, strictly)
        return
    # Bins of distance tell where the goal is reached; keys are made of what is in that bin alone.
    before, found, own = 0.0, 0, 0
    if n > 1024:
        bins = load_i64(s + slots.SUMS)
        for b in range(_BINS):
            store_f64(bins + 8 * b, 0.0)
        for i in range(n):
            at = bins + 8 * _bin(x, i, center)
            store_f64(at, load_f64(at) + np.float64(load_f32(weights + 4 * i)))
        while own < _BINS - 1 and not _reaches(before + load_f64(bins + 8 * own), goal, strictly):
            before += load_f64(bins + 8 * own)
            own += 1
    for i in range(n):
        if n <= 1024 or _bin(x, i, center) == own:
            store_i64(keys + 8 * found, _key(x, i, center))
            found += 1
    last = _cut(s, keys, found, weights, goal - before, strictly)
    to_x, to_ids, kept = load_i64(s + slots.LIST_X), load_i64(s + slots.LIST_IDS), 0
    for i in range(n):
        store_f32(to_x + 4 * kept, logit(x, i))
        store_i32(to_ids + 4 * kept, load_i32(ids + 4 * i))
        if _key(x, i, center) <= last:
            kept += 1
    set_list(s, kept, load_i64(s + slots.SORTED))
    store_i64(s + slots.TOP_KNOWN, 0)


@register_jitable
def keep_nearest(s, center64, share, strictly):
    """Keep the candidates whose logits are nearest to the center, as few as have `share` of the probability together
    (more than that, where `strictly`); of equally near ones the first. At least one, and never one that is -inf."""
    top, center = top_of(s), np.float32(center64)
    if load_i64(s + slots.IDS) != 0:
        _keep_list(s, center, share * total_of(s), strictly)
        return
    x, n = load_i64(s + slots.X), load_i64(s + slots.N)
    goal = share * masses(s, x, n, np.float32(top), center)
    sums, least = load_i64(s + slots.SUMS), np.float64(-LARGEST)
    for j in range(len(DISTANCES) - 1, -1, -1):
        # A little more than the goal: sums over blocks are not those of the list to the last bit.
        if load_f64(sums + 8 * j) > goal * 1.0001 + 1e-30:
            least = np.float64(center) - DISTANCES[j] * 1.0001
    keep_at_least(s, least)
    _keep_list(s, center, goal, strictly)
