"""The k largest logits."""

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
    store_f64,
    store_i32,
    store_i64,
)
from pyllm.sampling.compiled import slots
from pyllm.sampling.compiled.mass import keep_most
from pyllm.sampling.compiled.sorting import LOW, key_of, logit_of, select, sort_keys
from pyllm.sampling.compiled.state import LARGEST, NOTHING, lanes_above, low_zeros, set_list

_MOST_SORTED = 2048


@register_jitable
def _take_if_above(keys, found, k, room, least, x, number):
    """Append a logit above `least`; where that fills the room, keep the k largest. (number of keys, least)."""
    if not x > least or least == LARGEST:
        return found, least
    value = min(x, LARGEST)
    store_i64(keys + 8 * found, key_of(value, number))
    found += 1
    if found == room:
        select(keys, found, k)
        worst = load_i64(keys)
        for i in range(1, k):
            worst = max(worst, load_i64(keys + 8 * i))
        return k, logit_of(worst)
    return found, least


@register_jitable
def _find_largest(s, x, n, k):
    """Keys of the k largest of n logits at the front of KEYS; how many keys there are, k or fewer."""
    keys = load_i64(s + slots.KEYS)
    room = min(2 * k + 256, n + 1)
    found, least, i = 0, NOTHING, 0
    while i + 64 <= n:
        at = x + 4 * i
        limit = splat_f32(least)
        a, b, c, d = load_f32x16(at), load_f32x16(at + 64), load_f32x16(at + 128), load_f32x16(at + 192)
        # A NaN is never the first argument's maximum, so it hides no other.
        if lanes_above(max_f32(a, max_f32(b, max_f32(c, max_f32(d, limit)))), limit) != 0:
            bits = lanes_above(a, limit) | (lanes_above(b, limit) << 16) | (lanes_above(c, limit) << 32)
            bits |= lanes_above(d, limit) << 48
            while bits != 0:
                j = i + low_zeros(bits)
                bits &= bits - 1
                found, least = _take_if_above(keys, found, k, room, least, load_f32(x + 4 * j), j)
        i += 64
    while i < n:
        found, least = _take_if_above(keys, found, k, room, least, load_f32(x + 4 * i), i)
        i += 1
    if found > k:
        select(keys, found, k)
        found = k
    return found


@register_jitable
def keep_largest(s, k):
    """Keep the k largest logits (those that are not -inf, where there are fewer), largest first, equal ones by id.
    Many are only said to be in this order, and are drawn as if they were."""
    n = load_i64(s + slots.N)
    if load_i64(s + slots.ORDER) == slots.SORTED:
        store_i64(s + slots.N, min(n, k))
        return
    if k > slots.MANY:
        if k < n:
            keep_most(s, k)
        if k > _MOST_SORTED:
            store_i64(s + slots.ORDER, slots.TO_SORT)
            return
    _sort_largest(s, k)


@register_jitable
def sort(s):
    """All candidates, largest first."""
    if load_i64(s + slots.ORDER) != slots.SORTED:
        _sort_largest(s, load_i64(s + slots.N))


@register_jitable
def _sort_largest(s, k):
    x, ids, n = load_i64(s + slots.X), load_i64(s + slots.IDS), load_i64(s + slots.N)
    keys, found = load_i64(s + slots.KEYS), 0
    if ids == 0 and k < n:
        found = _find_largest(s, x, n, k)
    else:
        for i in range(n):
            value = load_f32(x + 4 * i)
            store_i64(keys + 8 * found, key_of(min(value, LARGEST), load_i32(ids + 4 * i) if ids != 0 else i))
            if value > NOTHING:
                found += 1
        if found > k:
            select(keys, found, k)
            found = k
    sort_keys(keys, found, load_i64(s + slots.SPARE_KEYS), load_i64(s + slots.SUMS))
    to_x, to_ids = load_i64(s + slots.LIST_X), load_i64(s + slots.LIST_IDS)
    for i in range(found):
        key = load_i64(keys + 8 * i)
        store_f32(to_x + 4 * i, logit_of(key))
        store_i32(to_ids + 4 * i, key & LOW)
    set_list(s, found, slots.SORTED)
    if found > 0:
        store_f64(s + slots.TOP, np.float64(load_f32(to_x)))
        store_i64(s + slots.TOP_KNOWN, 1)
