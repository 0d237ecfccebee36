"""What the encoders of formats with codebooks share: which groups of a codebook, and which scales.

A block's groups each have a scale db, and units of 8 or 4 weights, each of which a codebook's entry g stands for. With
importance w, a unit's squared error is a constant plus db² B - 2 db A, where A = sum of w |x| g and B = sum of w g².
So A and B of every entry are computed once. Then the best entry is found for 16 values of db at once: the error of
the best entry is a lower envelope of parabolas, and what is best at these few is nearly all that can be best
between them. All that follows looks at these 16 entries of a unit only: scales of groups, and the block's.

Scales are `unit * d * (2 s + 1)`; d is a half, s an integer of 0 .. s_max. Blocks have up to 16 groups, one a lane.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import register_jitable

from pyllm.jit.simd import (
    abs_f32,
    fma,
    hmax_f32,
    hsum_f32,
    load_f32,
    load_f32x16,
    max_f32,
    min_f32,
    round_f16,
    round_to_i32,
    select_lt,
    splat_f32,
    sqrt_f32,
    store_f32,
    store_f32x16,
    to_f32,
    zero_f32,
)
from pyllm.quant.codebooks import codebook
from pyllm.quant.kernels.tables import table

# Scratch of a block, in bytes from its start. LISTS: [unit][k][3][16 groups] of float32: -2 A, B, entry.
WEIGHTS, PRODUCTS, BASES, SCALES, ENTRIES, TEMPORARY, LISTS, SUMS = 0, 1024, 2048, 2112, 2176, 2688, 3072, 27648
"""w [256], w x [256] or w |x|, first guesses of db [16], s [16], entries found [8 units][16], room for two
vectors, lists [8 units], and (-2 A [n], B [n]) of the unit at hand. All float32."""
UNIT_BYTES = 16 * 3 * 64

_LANES = table(lambda: np.arange(16, dtype=np.float32).tobytes())


def tiles_table(format: str) -> Any:
    """The table of a codebook as [entries / 16][values of an entry][16 entries] of float32."""

    def make() -> bytes:
        book = codebook(format).astype(np.float32)
        return book.reshape(-1, 16, book.shape[1]).transpose(0, 2, 1).tobytes()

    return table(make)


@register_jitable
def splat_at(p):
    """The float32 at p, in every lane."""
    return splat_f32(load_f32(p))


@register_jitable
def prepare(x, w, scratch, signed):
    """Weights and products of 256 values at x; gives the largest magnitude, by which x is divided; 0: all is zero.

    Importance (at w, or none: 0) is divided by its mean; what has none to speak of gets a little, so as to be encoded
    reasonably.
    """
    most, mean = zero_f32(), zero_f32()
    for c in range(16):
        most = max_f32(most, abs_f32(load_f32x16(x + 64 * c)))
        if w != 0:
            mean = mean + load_f32x16(w + 64 * c) * splat_f32(np.float32(1 / 256))
    largest = hmax_f32(most)
    if largest < np.float32(1e-30):
        return np.float32(0)
    inverse = splat_f32(np.float32(1) / largest)
    total = hsum_f32(mean)
    weigh = np.float32(1e-30) < total < np.float32(1e30)
    share = splat_f32(np.float32(1) / total if weigh else np.float32(1))
    for c in range(16):
        v = load_f32x16(x + 64 * c) * inverse
        if not signed:
            v = abs_f32(v)
        weight = splat_f32(np.float32(1))
        if weigh:
            weight = max_f32(load_f32x16(w + 64 * c) * share, splat_f32(np.float32(1e-5)))
        store_f32x16(scratch + WEIGHTS + 64 * c, weight)
        store_f32x16(scratch + PRODUCTS + 64 * c, weight * v)
    return largest


@register_jitable
def clear_lists(scratch):
    """Once a row: lanes of groups that a format does not have count for nothing."""
    for c in range((SUMS - LISTS) // 64):
        store_f32x16(scratch + LISTS + 64 * c, zero_f32())


def guess(group: int, rms: float) -> Any:
    """A function (scratch) that guesses db of each group of `group` weights from its power; `rms` is a codebook's."""
    n_groups, n = 256 // group, group // 16
    least = np.float32(0.03)

    @register_jitable
    def run(scratch):
        store_f32x16(scratch + BASES, zero_f32())
        most = np.float32(0)
        for g in range(n_groups):
            power, weight = zero_f32(), zero_f32()
            for c in range(n):
                w = load_f32x16(scratch + WEIGHTS + 64 * (n * g + c))
                p = load_f32x16(scratch + PRODUCTS + 64 * (n * g + c))
                power, weight = power + p * p / w, weight + w
            square = hsum_f32(power) / hsum_f32(weight)
            most = max(most, square)
            store_f32(scratch + BASES + 4 * g, square)
        # Scales are never less than a 31st of the largest.
        floor = splat_f32(most * least * least)
        inverse = np.float32(1 / rms)
        bases = sqrt_f32(max_f32(load_f32x16(scratch + BASES), floor)) * splat_f32(inverse)
        store_f32x16(scratch + BASES, bases)

    return run


@register_jitable
def scan(a, b, n, db):
    """Entries with the least db B - 2 A of n (a multiple of 4), for 16 values of db: (these, entry numbers).

    a, b: where -2 A and B are.
    """
    e0 = e1 = e2 = e3 = splat_f32(np.float32(np.inf))
    j0 = j1 = j2 = j3 = zero_f32()
    for j in range(0, n, 4):
        number = splat_f32(np.float32(j))
        t0 = fma(db, splat_f32(load_f32(b + 4 * j)), splat_f32(load_f32(a + 4 * j)))
        t1 = fma(db, splat_f32(load_f32(b + 4 * j + 4)), splat_f32(load_f32(a + 4 * j + 4)))
        t2 = fma(db, splat_f32(load_f32(b + 4 * j + 8)), splat_f32(load_f32(a + 4 * j + 8)))
        t3 = fma(db, splat_f32(load_f32(b + 4 * j + 12)), splat_f32(load_f32(a + 4 * j + 12)))
        j0, e0 = select_lt(t0, e0, number, j0), min_f32(t0, e0)
        j1, e1 = select_lt(t1, e1, number, j1), min_f32(t1, e1)
        j2, e2 = select_lt(t2, e2, number, j2), min_f32(t2, e2)
        j3, e3 = select_lt(t3, e3, number, j3), min_f32(t3, e3)
    one = splat_f32(np.float32(1))
    j1, j3 = j1 + one, j3 + one
    two = splat_f32(np.float32(2))
    j0, e0 = select_lt(e1, e0, j1, j0), min_f32(e1, e0)
    j2, e2 = select_lt(e3, e2, j3, j2) + two, min_f32(e3, e2)
    return min_f32(e2, e0), select_lt(e2, e0, j2, j0)


@register_jitable
def enlist(scratch, unit, group, sums, n, entries):
    """Put the 16 entries into the lists of a unit of a group."""
    store_f32x16(scratch + TEMPORARY, entries)
    to = scratch + LISTS + UNIT_BYTES * unit + 4 * group
    for k in range(16):
        number = load_f32(scratch + TEMPORARY + 4 * k)
        j = np.int64(number)
        store_f32(to + 192 * k, load_f32(sums + 4 * j))
        store_f32(to + 192 * k + 64, load_f32(sums + 4 * n + 4 * j))
        store_f32(to + 192 * k + 128, number)


def fitter(units: int, unit: float, s_max: int, factors: Any, tried: int = 16, paired: bool = False) -> Any:
    """A function (scratch, largest) that finds the scales of a block whose lists are made; gives d (a half).

    s is left in SCALES, the entries in ENTRIES. `factors` is the table of scales, times BASES, that the `tried` entries
    of lists were made for. Where `paired`, groups are 0 .. 7, lanes 8 .. 15 are other ways to encode them, and s of the
    lanes that lost is negative.
    """
    c = np.float32(unit)
    top = np.float32(s_max)
    n_tries = 2 * s_max - 2

    @register_jitable
    def pick(lists, db):
        """Sums of -2 A and of B over the units of each group, as they are best at db."""
        a, b = zero_f32(), zero_f32()
        for u in range(units):
            p = lists + UNIT_BYTES * u
            best_a, best_b = load_f32x16(p), load_f32x16(p + 64)
            least = fma(db, best_b, best_a)
            for k in range(1, tried):
                ka, kb = load_f32x16(p + 192 * k), load_f32x16(p + 192 * k + 64)
                e = fma(db, kb, ka)
                best_a, best_b = select_lt(e, least, ka, best_a), select_lt(e, least, kb, best_b)
                least = min_f32(e, least)
            a, b = a + best_a, b + best_b
        return a, b

    @register_jitable
    def energy(lists, db):
        """Error of each group, less a constant."""
        total = zero_f32()
        for u in range(units):
            p = lists + UNIT_BYTES * u
            least = fma(db, load_f32x16(p + 64), load_f32x16(p))
            for k in range(1, tried):
                least = min_f32(least, fma(db, load_f32x16(p + 192 * k + 64), load_f32x16(p + 192 * k)))
            total = total + least
        return total * db

    @register_jitable
    def winners(scratch, e):
        """1 for the lanes that are used, 0 for others."""
        one = splat_f32(np.float32(1))
        if not paired:
            return one
        store_f32x16(scratch + TEMPORARY, e)
        store_f32x16(scratch + TEMPORARY + 64, e)
        other = load_f32x16(scratch + TEMPORARY + 32)
        first = select_lt(load_f32x16(_LANES()), splat_f32(np.float32(8)), one, zero_f32())
        return first * select_lt(other, e, zero_f32(), one) + (one - first) * select_lt(e, other, one, zero_f32())

    @register_jitable
    def nearest(lists, bases):
        """The best db of each group were it free, out of the 16 that were tried, and by least squares from there."""
        best, least = zero_f32(), splat_f32(np.float32(np.inf))
        for k in range(tried):
            db = bases * splat_f32(load_f32(factors() + 4 * k))
            e = zero_f32()
            for u in range(units):
                p = lists + UNIT_BYTES * u + 192 * k
                e = e + fma(db, load_f32x16(p + 64), load_f32x16(p))
            e = e * db
            best, least = select_lt(e, least, db, best), min_f32(e, least)
        for _ in range(2):
            a, b = pick(lists, best)
            best = max_f32(a * splat_f32(np.float32(-0.5)) / (b + splat_f32(np.float32(1e-20))), zero_f32())
        return best

    @register_jitable
    def step(d):
        return splat_f32(c * d), splat_f32(np.float32(2) * c * d)

    @register_jitable
    def improve(lists, s, d):
        """s of each group, or one more or less, whichever is best with d; and the errors."""
        first, more = step(d)
        best, least = s, energy(lists, fma(s, more, first))
        for change in (np.float32(-1), np.float32(1)):
            t = min_f32(max_f32(s + splat_f32(change), zero_f32()), splat_f32(top))
            e = energy(lists, fma(t, more, first))
            best, least = select_lt(e, least, t, best), min_f32(e, least)
        return best, least

    @register_jitable
    def search(scratch, largest, wanted):
        """The half d, and s, for which the groups' scales come out well, by trying; d = 0 where nothing is better."""
        lists = scratch + LISTS
        most = hmax_f32(wanted)
        best, least = np.float32(0), np.float32(0)
        best_s = zero_f32()
        for t in range(n_tries):
            d = round_f16(most * largest / (c * np.float32(s_max + 4 + t)))
            if d > np.float32(0):
                first, more = step(d / largest)
                s = to_f32(round_to_i32(min_f32(max_f32((wanted - first) / more, zero_f32()), splat_f32(top))))
                e = energy(lists, fma(s, more, first))
                total = hsum_f32(e * winners(scratch, e))
                if total < least:
                    best, least, best_s = d, total, s
        return best, best_s

    @register_jitable
    def refine(scratch, largest, d, s):
        lists = scratch + LISTS
        s, e = improve(lists, s, d / largest)
        least = hsum_f32(e * winners(scratch, e))
        for _ in range(3):
            first, more = step(d / largest)
            a, b = pick(lists, fma(s, more, first))
            q = (s + s + splat_f32(np.float32(1))) * winners(scratch, e) * splat_f32(c)
            bottom = hsum_f32(q * q * b)
            if not bottom > np.float32(0):
                break
            other = round_f16(np.float32(-0.5) * hsum_f32(q * a) / bottom * largest)
            if other == d or not other > np.float32(0):
                break
            t, e2 = improve(lists, s, other / largest)
            total = hsum_f32(e2 * winners(scratch, e2))
            if not total < least:
                break
            d, s, e, least = other, t, e2, total
        return d, s, e

    @register_jitable
    def note(scratch, db):
        """Leave the entries that are best at db."""
        for u in range(units):
            p = scratch + LISTS + UNIT_BYTES * u
            found, least = load_f32x16(p + 128), fma(db, load_f32x16(p + 64), load_f32x16(p))
            for k in range(1, tried):
                e = fma(db, load_f32x16(p + 192 * k + 64), load_f32x16(p + 192 * k))
                found, least = select_lt(e, least, load_f32x16(p + 192 * k + 128), found), min_f32(e, least)
            store_f32x16(scratch + ENTRIES + 64 * u, found)

    @register_jitable
    def fit(scratch, largest):
        wanted = nearest(scratch + LISTS, load_f32x16(scratch + BASES))
        d, s = search(scratch, largest, wanted)
        if d > np.float32(0):
            d, s, e = refine(scratch, largest, d, s)
            first, more = step(d / largest)
            note(scratch, fma(s, more, first))
            win = winners(scratch, e)
            store_f32x16(scratch + SCALES, s * win - (splat_f32(np.float32(1)) - win))
        return d

    return fit
