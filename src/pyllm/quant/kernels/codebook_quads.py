"""The best entries of large codebooks of three values, without looking at all of them.

An entry of 8 values is a low quad and a high quad, of 81 each. The error is a sum over both, so it is computed for the
2 x 81 quads, and an entry costs one addition. Entries are sorted by their high quad: a high quad whose error, with the
best of all low quads, is above the best found so far is passed over with all its entries.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import register_jitable

from pyllm.jit.simd import (
    fma,
    load_f32,
    load_f32x16,
    load_u8,
    load_u16,
    min_f32,
    select_lt,
    splat_f32,
    store_f32,
    store_f32x16,
    zero_f32,
)
from pyllm.jit.simd.core import F32X16, I16, I64, op
from pyllm.quant.codebooks import codebook
from pyllm.quant.kernels.codebook_search import LISTS, PRODUCTS, SUMS, TEMPORARY, UNIT_BYTES, WEIGHTS, splat_at
from pyllm.quant.kernels.tables import table

# Scratch from SUMS on: -2 A [2][96] and B [2][96] of low and high quads, then the errors [2][81][16 scales].
_A, _ERRORS = SUMS, SUMS + 1536
_HIGH = _ERRORS + 81 * 64


@op(types.int64, F32X16, F32X16)
def _any_lt(b, a):
    """Which lanes of a0 are less than those of a1, a bit each."""
    return b.zext(b.bitcast(b.fcmp_ordered("<", a[0], a[1]), I16), I64)


def quads(format: str, values: tuple[float, float, float]) -> tuple[Any, Any]:
    """Functions to search the codebook of `format`, whose three values stand for `values`.

    search(scratch, i, db) looks at the 8 weights from the i-th on: (db B - 2 A of the best entries, these), for 16
    values of db. enlist(scratch, unit, group, entries, offset) then puts them into the lists.
    """

    def make_digits() -> bytes:
        digits = np.arange(96)[:, None] // 3 ** np.arange(4) % 3
        return np.array(values, np.float32)[digits].reshape(6, 16, 4).transpose(0, 2, 1).tobytes()

    def make_entries() -> bytes:
        book = codebook(format)
        digits = np.searchsorted(np.unique(book), book)
        low, high = digits[:, :4] @ 3 ** np.arange(4), digits[:, 4:] @ 3 ** np.arange(4)
        starts = np.searchsorted(high, np.arange(82)).astype("<u2")
        return starts.tobytes() + low.astype(np.uint8).tobytes() + high.astype(np.uint8).tobytes()

    digits, entries = table(make_digits), table(make_entries)
    n = {"IQ1_S": 2048, "IQ2_S": 1024}[format]

    @register_jitable
    def sums(w, p, to):
        """-2 A and B of a quad's 81 (96) possibilities."""
        d = digits()
        w0, w1, w2, w3 = splat_at(w), splat_at(w + 4), splat_at(w + 8), splat_at(w + 12)
        p0, p1, p2, p3 = splat_at(p), splat_at(p + 4), splat_at(p + 8), splat_at(p + 12)
        minus = splat_f32(np.float32(-2))
        for t in range(6):
            g = d + 256 * t
            g0, g1, g2, g3 = load_f32x16(g), load_f32x16(g + 64), load_f32x16(g + 128), load_f32x16(g + 192)
            a = fma(g3, p3, fma(g2, p2, fma(g1, p1, g0 * p0)))
            b = fma(g3 * w3, g3, fma(g2 * w2, g2, fma(g1 * w1, g1, g0 * w0 * g0)))
            store_f32x16(to + 64 * t, a * minus)
            store_f32x16(to + 768 + 64 * t, b)

    @register_jitable
    def errors(a, db, to):
        """db B - 2 A of the 81 possibilities, and the least of them."""
        least = splat_f32(np.float32(np.inf))
        for k in range(81):
            e = fma(db, splat_at(a + 768 + 4 * k), splat_at(a + 4 * k))
            store_f32x16(to + 64 * k, e)
            least = min_f32(e, least)
        return least

    @register_jitable
    def visit(scratch, h, best, found):
        """Try all entries of high quad h."""
        at = entries()
        first, end = load_u16(at + 2 * h), load_u16(at + 2 * h + 2)
        e = load_f32x16(scratch + _HIGH + 64 * h)
        number, one = splat_f32(np.float32(first)), splat_f32(np.float32(1))
        for j in range(first, end):
            t = e + load_f32x16(scratch + _ERRORS + 64 * load_u8(at + 164 + j))
            found, best = select_lt(t, best, number, found), min_f32(t, best)
            number = number + one
        store_f32x16(scratch + _HIGH + 64 * h, splat_f32(np.float32(np.inf)))  # not again
        return best, found

    @register_jitable
    def search(scratch, i, db):
        w, p = scratch + WEIGHTS + 4 * i, scratch + PRODUCTS + 4 * i
        sums(w, p, scratch + _A)
        sums(w + 16, p + 16, scratch + _A + 384)
        low = errors(scratch + _A, db, scratch + _ERRORS)
        high = errors(scratch + _A + 384, db, scratch + _HIGH)
        best, found = splat_f32(np.float32(np.inf)), zero_f32()
        for h in range(81):
            if _any_lt(high, load_f32x16(scratch + _HIGH + 64 * h)) != 0xFFFF:
                best, found = visit(scratch, h, best, found)
        for h in range(81):
            if _any_lt(load_f32x16(scratch + _HIGH + 64 * h) + low, best) != 0:
                best, found = visit(scratch, h, best, found)
        return best, found

    @register_jitable
    def enlist(scratch, unit, group, entries_, offset):
        """Put those of the 16 entries that are not negative into the lists of a unit of a group, plus `offset`."""
        store_f32x16(scratch + TEMPORARY, entries_)
        to, at = scratch + LISTS + UNIT_BYTES * unit + 4 * group, entries() + 164
        for k in range(16):
            number = load_f32(scratch + TEMPORARY + 4 * k)
            if number >= np.float32(0):
                j = np.int64(number)
                low, high = scratch + _A + 4 * load_u8(at + j), scratch + _A + 384 + 4 * load_u8(at + n + j)
                store_f32(to + 192 * k, load_f32(low) + load_f32(high))
                store_f32(to + 192 * k + 64, load_f32(low + 768) + load_f32(high + 768))
                store_f32(to + 192 * k + 128, number + np.float32(offset))

    return search, enlist
