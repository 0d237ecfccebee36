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

# Scratch from SUMS on: -2 A, B and R (sum of w q) [2][96] each of low and high quads, then errors [2][81][16].
_A, _B, _R, _ERRORS = SUMS, SUMS + 768, SUMS + 1536, SUMS + 2304
_HIGH = _ERRORS + 81 * 64


@op(types.int64, F32X16, F32X16)
def _any_lt(b, a):
    """Which lanes of a0 are less than those of a1, a bit each."""
    return b.zext(b.bitcast(b.fcmp_ordered("<", a[0], a[1]), I16), I64)


def quads(format: str, values: tuple[float, float, float], shift: float = 0, apart: bool = False) -> Any:
    """A function to search the codebook of `format`, whose three values stand for `values`.

    list_best(scratch, i, unit, group, db) looks at the 8 weights from the i-th on, and puts the best entries for the 16
    values of db into the lists of the unit. With a shift, entries have `shift` added for the lower eight of db,
    subtracted for the others, and are numbered from the codebook's size on there; or else, where `apart`, are put into
    the lists of the group eight further.
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
    shifts = table(lambda: np.repeat([shift, -shift], 8).astype(np.float32).tobytes())
    n = {"IQ1_S": 2048, "IQ2_S": 1024}[format]

    @register_jitable
    def sums(w, p, to):
        """-2 A, B and R of a quad's 81 (96) possibilities."""
        d = digits()
        w0, w1, w2, w3 = splat_at(w), splat_at(w + 4), splat_at(w + 8), splat_at(w + 12)
        p0, p1, p2, p3 = splat_at(p), splat_at(p + 4), splat_at(p + 8), splat_at(p + 12)
        minus = splat_f32(np.float32(-2))
        for t in range(6):
            g = d + 256 * t
            g0, g1, g2, g3 = load_f32x16(g), load_f32x16(g + 64), load_f32x16(g + 128), load_f32x16(g + 192)
            a = fma(g3, p3, fma(g2, p2, fma(g1, p1, g0 * p0)))
            store_f32x16(to + _A + 64 * t, a * minus)
            g0, g1, g2, g3 = g0 * w0, g1 * w1, g2 * w2, g3 * w3
            if shift != 0:
                store_f32x16(to + _R + 64 * t, (g0 + g1) + (g2 + g3))
            b = g0 * load_f32x16(g) + g1 * load_f32x16(g + 64)
            b = fma(g3, load_f32x16(g + 192), fma(g2, load_f32x16(g + 128), b))
            store_f32x16(to + _B + 64 * t, b)

    @register_jitable
    def errors(quad, db, twist, to):
        """Errors of the 81 possibilities, but for what all of them have in common, and the least of them."""
        least = splat_f32(np.float32(np.inf))
        for k in range(81):
            e = fma(db, splat_at(quad + _B + 4 * k), splat_at(quad + _A + 4 * k))
            if shift != 0:
                e = fma(twist, splat_at(quad + _R + 4 * k), e)
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
        sums(w, p, scratch)
        sums(w + 16, p + 16, scratch + 384)
        twist = db * load_f32x16(shifts()) * splat_f32(np.float32(2))
        low = errors(scratch, db, twist, scratch + _ERRORS)
        high = errors(scratch + 384, db, twist, scratch + _HIGH)
        best, found = splat_f32(np.float32(np.inf)), zero_f32()
        for h in range(81):
            if _any_lt(high, load_f32x16(scratch + _HIGH + 64 * h)) != 0xFFFF:
                best, found = visit(scratch, h, best, found)
        for h in range(81):
            if _any_lt(load_f32x16(scratch + _HIGH + 64 * h) + low, best) != 0:
                best, found = visit(scratch, h, best, found)
        return found

    @register_jitable
    def list_best(scratch, i, unit, group, db):
        store_f32x16(scratch + TEMPORARY, search(scratch, i, db))
        at = entries() + 164
        all_w, all_p = np.float32(0), np.float32(0)
        for k in range(8):
            all_w += load_f32(scratch + WEIGHTS + 4 * (i + k))
            all_p += load_f32(scratch + PRODUCTS + 4 * (i + k))
        for k in range(16):
            number = load_f32(scratch + TEMPORARY + 4 * k)
            j = np.int64(number)
            low, high = scratch + 4 * load_u8(at + j), scratch + 384 + 4 * load_u8(at + n + j)
            a, b = load_f32(low + _A) + load_f32(high + _A), load_f32(low + _B) + load_f32(high + _B)
            to = scratch + LISTS + UNIT_BYTES * unit + 4 * group + 192 * k
            if shift != 0:
                d = load_f32(shifts() + 4 * k)
                a -= np.float32(2) * d * all_p
                b += np.float32(2) * d * (load_f32(low + _R) + load_f32(high + _R)) + d * d * all_w
                if k >= 8:
                    if apart:
                        to += 32 - 192 * 8
                    else:
                        number += np.float32(n)
            store_f32(to, a)
            store_f32(to + 64, b)
            store_f32(to + 128, number)

    return list_best
