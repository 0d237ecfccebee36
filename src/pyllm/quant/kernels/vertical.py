"""Search for scales, 16 groups of weights at a time: one vector lane per group.

A chunk of a row, 16 groups of `n` weights (16 or 32), is transposed into scratch, so that the code for a single group
runs for 16, without sums across lanes. A scale shared by several groups is equal in a run of lanes. The building blocks
of formats are here: `chunks` (the walk over a row), `Scale` (weights are a level times a scale), `Affine` (the same
plus an offset), and the choice of levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba.extending import register_jitable

from pyllm.jit.simd import (
    abs_f32,
    fma,
    load_f32,
    load_f32x16,
    max4_f32,
    max8_f32,
    max16_f32,
    max_f32,
    min_f32,
    round_f16x16,
    select_lt,
    splat_f32,
    sqrt_f32,
    store_f32x16,
    sum4_f32,
    sum8_f32,
    sum16_f32,
    transpose_f32,
    zero_f32,
)

WEIGHTS = 2048
"""Where the importances of a chunk are in scratch, transposed like its weights, which are at 0."""
PADDING = 4096
"""Where the last, shorter chunk of a row is filled up."""
RESULTS = 8192
"""Where formats keep vectors of results, one value a group."""

_MAGIC = np.float32(12582912.0)  # 1.5 * 2^23: adding it rounds to an integer
_TINY = np.float32(1e-30)


def chunks(n: int, encode: Any, level: bool = False) -> Any:
    """An encoder of rows (`rows.encode_rows`) from `encode(x, first, groups, target, scratch)`, which encodes a chunk.

    x: address of its weights; first: number of its first weight in the row; groups: how many it has (at most 16; those
    that lack are zeros in scratch); target: the row's. Without importance, errors weigh by the weights' own magnitude,
    1 + |x| / (2 rms of the group), unless `level`: then all the same.
    """
    size = 16 * n

    @register_jitable
    def row(x, w, columns, target, scratch):
        for first in range(0, columns, size):
            groups = min(columns - first, size) // n
            here = x + 4 * first
            _transpose(here, groups, scratch, scratch + PADDING, np.float32(0))
            if w != 0:
                _transpose(w + 4 * first, groups, scratch + WEIGHTS, scratch + PADDING, np.float32(1))
            else:
                _by_magnitude(scratch)
            encode(here, first, groups, target, scratch)

    @register_jitable
    def _transpose(source, groups, to, padding, filler):
        if groups < 16:
            for i in range(0, groups * n, 16):
                store_f32x16(padding + 4 * i, load_f32x16(source + 4 * i))
            for i in range(groups * n, size, 16):
                store_f32x16(padding + 4 * i, splat_f32(filler))
            source = padding
        for i in range(n // 16):
            transpose_f32(source + 64 * i, 4 * n, to + 1024 * i)

    @register_jitable
    def _by_magnitude(chunk):
        squares, one = zero_f32(), splat_f32(np.float32(1))
        for j in range(n):
            v = load_f32x16(chunk + 64 * j)
            squares = fma(v, v, squares)
        share = splat_f32(np.float32(0 if level else 0.5))
        slope = share * inverse_of(sqrt_f32(squares * splat_f32(np.float32(1 / n))))
        for j in range(n):
            store_f32x16(chunk + WEIGHTS + 64 * j, fma(abs_f32(load_f32x16(chunk + 64 * j)), slope, one))

    return row


def integers(low: int, high: int) -> Any:
    """quantize(x, inverse): the integer from low to high that is nearest to x * inverse, as floats."""
    magic, least, most = _MAGIC, np.float32(_MAGIC + low), np.float32(_MAGIC + high)

    @register_jitable
    def quantize(x, inverse):
        shifted = fma(x, inverse, splat_f32(magic))
        return min_f32(max_f32(shifted, splat_f32(least)), splat_f32(most)) - splat_f32(magic)

    return quantize


def naturals(most: int) -> Any:
    """quantize(x, inverse, shift): the integer from 0 to most that is nearest to x * inverse + shift, as floats."""
    magic, high = _MAGIC, np.float32(_MAGIC + most)

    @register_jitable
    def quantize(x, inverse, shift):
        # The shift is a fraction, so it cannot be added to the number that rounds.
        shifted = fma(x, inverse, shift) + splat_f32(magic)
        return min_f32(max_f32(shifted, splat_f32(magic)), splat_f32(high)) - splat_f32(magic)

    return quantize


@register_jitable
def round_f32(x):
    """To the nearest integer; magnitudes must be below 2^22."""
    return (x + splat_f32(_MAGIC)) - splat_f32(_MAGIC)


@register_jitable
def inverse_of(x):
    """1 / x, 0 for 0."""
    return select_lt(splat_f32(_TINY), abs_f32(x), splat_f32(np.float32(1)) / x, zero_f32())


@register_jitable
def _same(v):
    return v


SUM = {1: _same, 4: sum4_f32, 8: sum8_f32, 16: sum16_f32}
"""Sum over runs of lanes."""
MAX = {1: _same, 4: max4_f32, 8: max8_f32, 16: max16_f32}


class Scale:
    """Groups whose weights are scale * level: functions on the chunk in scratch.

    `quantize(x, inverse)` gives the level nearest to x * inverse; `shared` consecutive lanes have one scale.
    """

    def __init__(self, n: int, quantize: Any, extents: Sequence[float], shared: int = 1) -> None:
        total, largest = SUM[shared], MAX[shared]

        @register_jitable
        def sums(chunk, inverse):
            """Sums of w x q and w q², q chosen for 1 / inverse."""
            xq, qq = zero_f32(), zero_f32()
            for j in range(n):
                x = load_f32x16(chunk + 64 * j)
                q = quantize(x, inverse)
                wq = load_f32x16(chunk + WEIGHTS + 64 * j) * q
                xq = fma(wq, x, xq)
                qq = fma(wq, q, qq)
            return total(xq), total(qq)

        @register_jitable
        def error(chunk, scale):
            """Sum of w (scale q - x)²."""
            inverse = inverse_of(scale)
            e = zero_f32()
            for j in range(n):
                x = load_f32x16(chunk + 64 * j)
                r = fma(quantize(x, inverse), zero_f32() - scale, x)
                e = fma(load_f32x16(chunk + WEIGHTS + 64 * j) * r, r, e)
            return total(e)

        candidates = np.array(extents, np.float32)

        @register_jitable
        def fit(chunk):
            """The best scale found: the largest weight is tried at each of `extents`, then least squares."""
            peak = zero_f32()
            for j in range(n):
                peak = max_f32(peak, abs_f32(load_f32x16(chunk + 64 * j)))
            inverse = inverse_of(largest(peak))
            best, gain = zero_f32(), zero_f32()
            for k in range(len(candidates)):
                xq, qq = sums(chunk, inverse * splat_f32(candidates[k]))
                scale = xq * inverse_of(qq)
                g = xq * scale
                best = select_lt(gain, g, scale, best)
                gain = max_f32(gain, g)
            return best

        self.sums, self.error, self.fit = sums, error, fit


class Affine:
    """Groups whose weights are scale * q + offset, q from 0 to `most`, scale not negative; functions on the chunk.

    `anchor` replaces the weights in scratch by what they are above the least one (or above 0, if `below` and that is
    less), which keeps sums exact. Offsets count from there; where `below`, weights' offsets are not positive. `starts`
    are what is tried first: the levels between the least and the largest weight, and the level of the least.
    """

    def __init__(self, n: int, most: int, starts: Sequence[tuple[float, float]], below: bool) -> None:
        quantize = naturals(most)
        self.quantize = quantize

        @register_jitable
        def anchor(chunk):
            """The offset that offsets count from, and how far weights go above it."""
            low = zero_f32() if below else load_f32x16(chunk)
            high = low
            for j in range(n):
                x = load_f32x16(chunk + 64 * j)
                low, high = min_f32(low, x), max_f32(high, x)
            for j in range(n):
                store_f32x16(chunk + 64 * j, load_f32x16(chunk + 64 * j) - low)
            return low, high - low

        @register_jitable
        def sums(chunk, inverse, shift):
            """Sums of w y q, w q² and w q, q = y * inverse + shift."""
            yq, qq, q1 = zero_f32(), zero_f32(), zero_f32()
            for j in range(n):
                y = load_f32x16(chunk + 64 * j)
                q = quantize(y, inverse, shift)
                wq = load_f32x16(chunk + WEIGHTS + 64 * j) * q
                q1 = q1 + wq
                qq = fma(wq, q, qq)
                yq = fma(wq, y, yq)
            return yq, qq, q1

        @register_jitable
        def error(chunk, scale, offset):
            """Sum of w (scale q + offset - y)²."""
            inverse = inverse_of(scale)
            shift = zero_f32() - offset * inverse
            e = zero_f32()
            for j in range(n):
                y = load_f32x16(chunk + 64 * j)
                r = fma(quantize(y, inverse, shift), zero_f32() - scale, y - offset)
                e = fma(load_f32x16(chunk + WEIGHTS + 64 * j) * r, r, e)
            return e

        @register_jitable
        def weights(chunk):
            """Sums of w and w y."""
            w1, wy = zero_f32(), zero_f32()
            for j in range(n):
                w = load_f32x16(chunk + WEIGHTS + 64 * j)
                w1 = w1 + w
                wy = fma(w, load_f32x16(chunk + 64 * j), wy)
            return w1, wy

        @register_jitable
        def solve(low, w1, wy, yq, qq, q1):
            """Least squares for chosen q: scale, offset, and by how much they lower the sum of w y²."""
            det = w1 * qq - q1 * q1
            solid = splat_f32(np.float32(1e-6)) * w1 * qq
            scale = select_lt(solid, det, (w1 * yq - q1 * wy) * inverse_of(det), yq * inverse_of(qq))
            offset = select_lt(solid, det, (wy - scale * q1) * inverse_of(w1), zero_f32())
            if below:
                limit = zero_f32() - low
                scale = select_lt(limit, offset, (yq - limit * q1) * inverse_of(qq), scale)
                offset = min_f32(offset, limit)
            scale = max_f32(scale, zero_f32())
            two = splat_f32(np.float32(2))
            gain = scale * (two * yq - scale * qq - two * offset * q1) + offset * (two * wy - offset * w1)
            return scale, offset, gain

        table = np.array(starts, np.float32)

        @register_jitable
        def fit(chunk, low, span):
            """Best scale and offset found by least squares, from `starts` and then from where the best of them led."""
            w1, wy = weights(chunk)
            scale, offset, gain = zero_f32(), zero_f32(), zero_f32()
            per_span = inverse_of(span)
            for k in range(len(table) + 2):
                if k < len(table):
                    inverse, shift = per_span * splat_f32(table[k, 0]), splat_f32(table[k, 1])
                else:
                    inverse = inverse_of(scale)
                    shift = zero_f32() - offset * inverse
                yq, qq, q1 = sums(chunk, inverse, shift)
                s, o, g = solve(low, w1, wy, yq, qq, q1)
                scale, offset = select_lt(gain, g, s, scale), select_lt(gain, g, o, offset)
                gain = max_f32(gain, g)
            return scale, offset

        self.anchor, self.sums, self.error, self.weights, self.fit = anchor, sums, error, weights, fit


@register_jitable
def finer(error, chunk, scale):
    """Scales as halves: the nearest, or one of its neighbours where that is better."""
    best = round_f16x16(scale)
    least = error(chunk, best)
    for k in (-1, 1):
        other = round_f16x16(scale * splat_f32(np.float32(1 + k / 1024)))
        e = error(chunk, other)
        best, least = select_lt(e, least, other, best), min_f32(e, least)
    return best


@register_jitable
def splat_at(address):
    """The float at an address, in every lane."""
    return splat_f32(load_f32(address))


def starts(most: int, trims: Sequence[float], fewest: int) -> list[tuple[float, float]]:
    """Starts for `Affine`: levels from 0 to `most` on the range of the weights less each pair of `trims` at its ends,
    and fewer levels on all of it, down to `fewest`: weights that were quantized before may not use the last ones.
    """
    trimmed = [(most / (1 - a - b), -a * most / (1 - a - b)) for a in trims for b in trims]
    return trimmed + [(float(n), 0.0) for n in range(most - 1, fewest - 1, -1)]


def both_signs(extents: Sequence[float]) -> list[float]:
    """Extents for `Scale` where levels are not symmetric."""
    return [*extents, *(-e for e in extents)]
