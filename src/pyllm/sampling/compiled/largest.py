"""The k largest logits, in order, in one pass over all of them."""

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
from pyllm.sampling.compiled.state import (
    LARGEST,
    NOTHING,
    bits_float,
    float_bits,
    lanes_above,
    low_zeros,
    set_list,
)

_LOW = 0xFFFFFFFF
_FEW = 24


@register_jitable
def key_of(x, number):
    """An integer that is the smaller, the larger x is; of equal ones, the smaller the number is (up to 2^31)."""
    bits = float_bits(x + np.float32(0))  # -0 is 0
    return (~(bits ^ ((bits >> 31) & 0x7FFFFFFF)) << 32) | number


@register_jitable
def logit_of(key):
    bits = ~(key >> 32)
    return bits_float(bits ^ ((bits >> 31) & 0x7FFFFFFF))


@register_jitable
def select(keys, n, k):
    """Move the k smallest of n keys (k < n) to the front, in no certain order."""
    low, high = 0, n - 1
    while low < high:
        a, b, c = load_i64(keys + 8 * low), load_i64(keys + 8 * ((low + high) >> 1)), load_i64(keys + 8 * high)
        pivot = max(min(a, b), min(max(a, b), c))
        i, j = low, high
        while i <= j:
            while load_i64(keys + 8 * i) < pivot:
                i += 1
            while load_i64(keys + 8 * j) > pivot:
                j -= 1
            if i <= j:
                left = load_i64(keys + 8 * i)
                store_i64(keys + 8 * i, load_i64(keys + 8 * j))
                store_i64(keys + 8 * j, left)
                i += 1
                j -= 1
        if k - 1 <= j:
            high = j
        elif k - 1 >= i:
            low = i
        else:
            return


@register_jitable
def _sift(keys, i, n):
    key = load_i64(keys + 8 * i)
    while 2 * i + 1 < n:
        child = 2 * i + 1
        if child + 1 < n and load_i64(keys + 8 * child + 8) > load_i64(keys + 8 * child):
            child += 1
        if load_i64(keys + 8 * child) <= key:
            break
        store_i64(keys + 8 * i, load_i64(keys + 8 * child))
        i = child
    store_i64(keys + 8 * i, key)


@register_jitable
def sort_keys(keys, n):
    """Ascending."""
    if n > _FEW:
        for i in range(n // 2 - 1, -1, -1):
            _sift(keys, i, n)
        for last in range(n - 1, 0, -1):
            key = load_i64(keys)
            store_i64(keys, load_i64(keys + 8 * last))
            store_i64(keys + 8 * last, key)
            _sift(keys, 0, last)
        return
    for i in range(1, n):
        key, j = load_i64(keys + 8 * i), i
        while j > 0 and load_i64(keys + 8 * j - 8) > key:
            store_i64(keys + 8 * j, load_i64(keys + 8 * j - 8))
            j -= 1
        store_i64(keys + 8 * j, key)


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
    """Keep the k largest logits (those that are not -inf, where there are fewer), largest first, equal ones by id."""
    x, ids, n = load_i64(s + slots.X), load_i64(s + slots.IDS), load_i64(s + slots.N)
    if load_i64(s + slots.SORTED) != 0:
        store_i64(s + slots.N, min(n, k))
        return
    keys, found = load_i64(s + slots.KEYS), 0
    if ids == 0:
        found = _find_largest(s, x, n, k)
    else:
        for i in range(n):
            if load_f32(x + 4 * i) > NOTHING:
                store_i64(keys + 8 * found, key_of(load_f32(x + 4 * i), load_i32(ids + 4 * i)))
                found += 1
        if found > k:
            select(keys, found, k)
            found = k
    sort_keys(keys, found)
    to_x, to_ids = load_i64(s + slots.LIST_X), load_i64(s + slots.LIST_IDS)
    for i in range(found):
        key = load_i64(keys + 8 * i)
        store_f32(to_x + 4 * i, logit_of(key))
        store_i32(to_ids + 4 * i, key & _LOW)
    set_list(s, found, 1)
    if found > 0:
        store_f64(s + slots.TOP, np.float64(load_f32(to_x)))
        store_i64(s + slots.TOP_KNOWN, 1)


@register_jitable
def sort(s):
    """All candidates, largest first."""
    keep_largest(s, load_i64(s + slots.N))
