"""A hash table from byte strings to token ids: how it is built, and how strings are found in it.

A string's hash is a polynomial in its bytes, so that the hash of two strings side by side follows from theirs. A slot
is int64: the upper half some of the hash's bits, the lower half the id plus one; 0 is free. Ids are compared by their
strings in the end, so that hashes decide nothing but the time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import types
from numba.extending import register_jitable

from pyllm.jit.simd import load_i32, load_i64, load_u8, store_i32, store_i64
from pyllm.jit.simd.core import op

BASE = 0x2545F4914F6CDD1D
"""What a hash is multiplied by for each byte that follows."""
_MIX = 0x1D8E4E27C47D124F
_LOW = 0xFFFFFFFF


@op(types.int64, types.int64, types.int64, types.int64)
def times_plus(b: Any, a: Any) -> Any:
    """a * b + c modulo 2^64; numba's own operators promise LLVM that nothing overflows."""
    return b.add(b.mul(a[0], a[1]), a[2])


@register_jitable
def hash_of(text, n):
    h = 0
    for i in range(n):
        h = times_plus(h, BASE, load_u8(text + i) + 1)
    return h


@register_jitable
def slot_of(h):
    """A number whose low bits are well mixed."""
    h = times_plus(h ^ (h >> 29), _MIX, 0)
    return h ^ (h >> 32)


@register_jitable
def tag_of(h):
    return (h >> 31) & _LOW


@register_jitable
def same(a, b, n):
    i = 0
    while i + 8 <= n:
        if load_i64(a + i) != load_i64(b + i):
            return False
        i += 8
    while i < n:
        if load_u8(a + i) != load_u8(b + i):
            return False
        i += 1
    return True


@register_jitable
def find(slots, mask, offsets, blob, h, text, n):
    """Place in the list of the string of hash `h` at `text`, -1 if it is not in the table."""
    at, tag = slot_of(h) & mask, tag_of(h)
    while True:
        entry = load_i64(slots + 8 * at)
        if entry == 0:
            return -1
        if ((entry >> 32) & _LOW) == tag:
            i = (entry & _LOW) - 1
            start = load_i32(offsets + 4 * i)
            if load_i32(offsets + 4 * i + 4) - start == n and same(blob + start, text, n):
                return i
        at = (at + 1) & mask


@register_jitable
def recall(kept, mask, h, text, at, n):
    """Of a word at text + at that was met before in the same text, count << 40 | place of its first id; else -1."""
    entry = kept + 32 * (slot_of(h) & mask)
    if load_i64(entry) == h and load_i64(entry + 8) == n and same(text + load_i64(entry + 16), text + at, n):
        return load_i64(entry + 24)
    return -1


@register_jitable
def remember(kept, mask, h, at, n, first, count):
    """Keep where a word's ids are."""
    if count < 1 << 20:
        entry = kept + 32 * (slot_of(h) & mask)
        store_i64(entry, h)
        store_i64(entry + 8, n)
        store_i64(entry + 16, at)
        store_i64(entry + 24, (count << 40) | first)


@register_jitable
def again(out, made, found):
    """Write ids that `recall` found once more; their number."""
    count, source = found >> 40, out + 4 * (found & 0xFFFFFFFFFF)
    for i in range(count):
        store_i32(out + 4 * (made + i), load_i32(source + 4 * i))
    return count


def build() -> Callable[[int, int, int], None]:
    """Fill a table. Of equal strings the first counts.

    Slots: slots (int64 [mask + 1], zeros), mask, number of strings, offsets (int32 [n + 1]), their bytes.
    """

    def k(args, thread, n_threads):
        slots, mask, n = load_i64(args), load_i64(args + 8), load_i64(args + 16)
        offsets, blob = load_i64(args + 24), load_i64(args + 32)
        for i in range(n):
            start = load_i32(offsets + 4 * i)
            length = load_i32(offsets + 4 * i + 4) - start
            h = hash_of(blob + start, length)
            if find(slots, mask, offsets, blob, h, blob + start, length) < 0:
                at = slot_of(h) & mask
                while load_i64(slots + 8 * at) != 0:
                    at = (at + 1) & mask
                store_i64(slots + 8 * at, (tag_of(h) << 32) | (i + 1))

    return k
