"""Leaving out candidates below a threshold. Those that stay keep their order."""

from __future__ import annotations

import numpy as np
from numba.extending import register_jitable

from pyllm.jit.simd import (
    load_f32,
    load_f32x16,
    load_i32,
    load_i64,
    max_f32,
    splat_f32,
    store_f32,
    store_i32,
    store_i64,
)
from pyllm.sampling.compiled import slots
from pyllm.sampling.compiled.patches import patch, prepare
from pyllm.sampling.compiled.state import LARGEST, NOTHING, lanes_from, logit, low_zeros, set_list


@register_jitable
def keep_at_least(s, threshold):
    """Keep the candidates whose logit is at least `threshold`, rounded to float32, which the largest's is."""
    x, ids, n = load_i64(s + slots.X), load_i64(s + slots.IDS), load_i64(s + slots.N)
    to_x, to_ids = load_i64(s + slots.LIST_X), load_i64(s + slots.LIST_IDS)
    least = np.float32(threshold)
    if load_i64(s + slots.SORTED) != 0:
        kept = 1
        while kept < n and load_f32(x + 4 * kept) >= least:
            kept += 1
        store_i64(s + slots.N, kept)
        return
    kept = 0
    if ids != 0:
        for i in range(n):
            value, token = load_f32(x + 4 * i), load_i32(ids + 4 * i)
            store_f32(to_x + 4 * kept, value)
            store_i32(to_ids + 4 * kept, token)
            if value >= least:
                kept += 1
    else:
        kept = _gather(x, n, least, to_x, to_ids)
    set_list(s, kept, 0)


@register_jitable
def _gather(x, n, least, to_x, to_ids):
    kept, i = 0, 0
    limit = splat_f32(least)
    while i + 64 <= n:
        at = x + 4 * i
        a, b, c, d = load_f32x16(at), load_f32x16(at + 64), load_f32x16(at + 128), load_f32x16(at + 192)
        if lanes_from(max_f32(max_f32(a, b), max_f32(c, d)), limit) != 0:
            bits = lanes_from(a, limit) | (lanes_from(b, limit) << 16) | (lanes_from(c, limit) << 32)
            bits |= lanes_from(d, limit) << 48
            while bits != 0:
                j = i + low_zeros(bits)
                bits &= bits - 1
                store_f32(to_x + 4 * kept, load_f32(x + 4 * j))
                store_i32(to_ids + 4 * kept, j)
                kept += 1
        i += 64
    while i < n:
        if load_f32(x + 4 * i) >= least:
            store_f32(to_x + 4 * kept, load_f32(x + 4 * i))
            store_i32(to_ids + 4 * kept, i)
            kept += 1
        i += 1
    return kept


@register_jitable
def drop_all_but_least(s, threshold):
    """Of the candidates whose logit is at least `threshold`, leave out all but the least; of equals, the last stays."""
    x, ids, n = load_i64(s + slots.X), load_i64(s + slots.IDS), load_i64(s + slots.N)
    limit = np.float32(max(threshold, np.float64(-LARGEST)))
    places = load_i64(s + slots.TOUCHED)
    found, place = 0, -1
    if ids == 0:
        found = _gather(x, n, limit, load_i64(s + slots.LIST_X), places)
    else:
        for i in range(n):
            if logit(x, i) >= limit:
                store_i32(places + 4 * found, i)
                found += 1
    for j in range(found):
        i = load_i32(places + 4 * j)
        if place < 0 or logit(x, i) <= logit(x, place):
            place = i
    if found < 2:
        return
    was_sorted = load_i64(s + slots.SORTED)
    prepare(s, found)
    for j in range(found):
        i = load_i32(places + 4 * j)
        if i != place:
            patch(s, i, NOTHING)
    if ids != 0:
        keep_at_least(s, np.float64(-LARGEST))
        store_i64(s + slots.SORTED, was_sorted)
