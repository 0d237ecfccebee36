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
_FEW = 96


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
def _by_digit(source, target, n, shift, ends):
    """Copy keys in order of 8 of their bits, equal ones in theirs."""
    for d in range(256):
        store_i64(ends + 8 * d, 0)
    for i in range(n):
        at = ends + 8 * ((load_i64(source + 8 * i) >> shift) & 255)
        store_i64(at, load_i64(at) + 1)
    total = 0
    for d in range(256):
        count = load_i64(ends + 8 * d)
        store_i64(ends + 8 * d, total)
        total += count
    for i in range(n):
        key = load_i64(source + 8 * i)
        at = ends + 8 * ((key >> shift) & 255)
        to = load_i64(at)
        store_i64(target + 8 * to, key)
        store_i64(at, to + 1)


@register_jitable
def sort_keys(keys, n, spare, sums):
    """Ascending. `spare`: room for as many keys, `sums`: for 256 numbers."""
    if n > _FEW:
        # By the upper halves, whose sign bit is turned for it: four digits end where they began.
        flip = -(1 << 63)
        for i in range(n):
            store_i64(keys + 8 * i, load_i64(keys + 8 * i) ^ flip)
        for shift in (32, 48):
            _by_digit(keys, spare, n, shift, sums)
            _by_digit(spare, keys, n, shift + 8, sums)
        for i in range(n):
            store_i64(keys + 8 * i, load_i64(keys + 8 * i) ^ flip)
    # All of it for few; for many what is left are equal halves, neighbours by now.
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
    sort_keys(keys, found, load_i64(s + slots.SPARE_KEYS), load_i64(s + slots.SUMS))
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
