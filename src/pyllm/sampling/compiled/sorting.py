"""Keys of logits: integers that are the smaller, the larger a logit is. Selecting and sorting them."""

from __future__ import annotations

from numba.extending import register_jitable

from pyllm.jit.simd import load_i64, store_i64
from pyllm.sampling.compiled.state import float_order, ordered_float

LOW = 0xFFFFFFFF
_FEW = 96


@register_jitable
def key_of(x, number):
    """An integer that is the smaller, the larger x is; of equal ones, the smaller the number is (up to 2^31)."""
    return (~float_order(x) << 32) | number


@register_jitable
def logit_of(key):
    return ordered_float(~(key >> 32))


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
