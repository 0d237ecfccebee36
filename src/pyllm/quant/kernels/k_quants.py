"""Encoders of Q2_K to Q6_K: blocks of 256 weights, whose groups' scales are integers times a scale of the block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba.extending import register_jitable

from pyllm.jit.simd import (
    abs_f32,
    load_f32,
    load_f32x16,
    max_f32,
    min_f32,
    round_f16x16,
    round_to_i32,
    select_lt,
    shift_right_i32,
    splat_f32,
    splat_i32,
    store_f16,
    store_f32x16,
    store_i8,
    store_i8x16,
    zero_f32,
    zero_i32,
)
from pyllm.quant.kernels.rows import encode_rows
from pyllm.quant.kernels.vertical import (
    MAX,
    RESULTS,
    SUM,
    Affine,
    Scale,
    both_signs,
    chunks,
    integers,
    inverse_of,
    round_f32,
    splat_at,
    starts,
)


def encode(format: str, source: str) -> Any:
    """Kernel that encodes rows (`rows.encode_rows`)."""
    return encode_rows(_ROWS[format](), format, source)


def affine_scales(groups: Affine, n: int, most: int, rounds: int) -> Any:
    """scales(chunk, low, scale, offset) -> d, dmin, scales, mins (integers from 0 to `most`, as floats).

    Weights are d * scale * q - dmin * min. The scales of a block (256 weights) are searched together: d and dmin from
    what rounds its groups' best scales best, then in turn the integers (each group's neighbours are tried) and,
    by least squares, d and dmin.
    """
    lanes = 256 // n
    total, largest = SUM[lanes], MAX[lanes]
    error, sums, weights = groups.error, groups.sums, groups.weights
    top, finer = np.float32(most), np.float32(1 if most > 31 else 0.5)

    @register_jitable
    def grid(value, weight):
        """The step that rounds values (not negative) to 0 .. most steps best, as a half."""
        peak = largest(value)
        best, least = zero_f32(), splat_f32(np.float32(np.inf))
        for k in range(16):
            step = round_f16x16(peak * splat_f32(np.float32(1) / (top - np.float32(k) * finer)))
            level = min_f32(round_f32(value * inverse_of(step)), splat_f32(top))
            r = value - step * level
            e = total(weight * r * r)
            best, least = select_lt(e, least, step, best), min_f32(e, least)
        return best

    @register_jitable
    def nearest(value, step):
        return max_f32(min_f32(round_f32(value * inverse_of(step)), splat_f32(top)), zero_f32())

    @register_jitable
    def scales(chunk, low, scale, offset):
        inverse = inverse_of(scale)
        w1, wy = weights(chunk)
        yq, qq, q1 = sums(chunk, inverse, zero_f32() - offset * inverse)
        minimum = max_f32(zero_f32() - low - offset, zero_f32())
        d = grid(scale, qq - q1 * q1 * inverse_of(w1))
        dmin = grid(minimum, w1)
        a, b = nearest(scale, d), nearest(minimum, dmin)
        least = error(chunk, d * a, zero_f32() - dmin * b - low)
        for _ in range(rounds):
            centre_a, centre_b = a, b
            for k in (0, 1, 2, 3, 5, 6, 7, 8):
                da, db = np.float32(k // 3 - 1), np.float32(k % 3 - 1)
                at = min_f32(max_f32(centre_a + splat_f32(da), zero_f32()), splat_f32(top))
                bt = min_f32(max_f32(centre_b + splat_f32(db), zero_f32()), splat_f32(top))
                e = error(chunk, d * at, zero_f32() - dmin * bt - low)
                a, b = select_lt(e, least, at, a), select_lt(e, least, bt, b)
                least = min_f32(e, least)
            # Least squares for d and dmin: x = y + low is to be d a q - dmin b.
            s = d * a
            inverse = inverse_of(s)
            yq, qq, q1 = sums(chunk, inverse, (dmin * b + low) * inverse)
            xq, x1 = yq + low * q1, wy + low * w1
            aa, ab, bb = total(a * a * qq), total(a * b * q1), total(b * b * w1)
            ax, bx = total(a * xq), total(b * x1)
            det = aa * bb - ab * ab
            solid = splat_f32(np.float32(1e-6)) * aa * bb
            d_new = select_lt(solid, det, (ax * bb - ab * bx) * inverse_of(det), d)
            dmin_new = select_lt(solid, det, (ab * ax - aa * bx) * inverse_of(det), dmin)
            d_new = round_f16x16(max_f32(d_new, zero_f32()))
            dmin_new = round_f16x16(max_f32(dmin_new, zero_f32()))
            e = error(chunk, d_new * a, zero_f32() - dmin_new * b - low)
            before, after = total(least), total(e)
            d, dmin = select_lt(after, before, d_new, d), select_lt(after, before, dmin_new, dmin)
            least = select_lt(after, before, e, least)
        return d, dmin, a, b

    return scales


def signed_scales(groups: Scale, n: int, low: int, high: int, rounds: int, sweep: int) -> Any:
    """scales(chunk, scale) -> d, scales (integers from low to high, as floats): as `affine_scales`, without mins. The
    first round tries all scales that are up to `sweep` away, others two (one, if `sweep` is)."""
    lanes = 256 // n
    total, largest = SUM[lanes], MAX[lanes]
    error, sums = groups.error, groups.sums
    least_level, top_level = np.float32(low), np.float32(high)
    steps = 32 if high < 64 else 8  # the finer the scales, the less there is to gain

    @register_jitable
    def clamp(level):
        return min_f32(max_f32(level, splat_f32(least_level)), splat_f32(top_level))

    @register_jitable
    def scales(chunk, scale):
        xq, qq = sums(chunk, inverse_of(scale))
        peak = largest(abs_f32(scale))
        d, least = zero_f32(), splat_f32(np.float32(np.inf))
        for k in range(steps):
            extent = -least_level - np.float32(k // 2)
            sign = np.float32(1 - 2 * (k & 1))
            step = round_f16x16(peak * splat_f32(sign / extent))
            r = scale - step * clamp(round_f32(scale * inverse_of(step)))
            e = total(qq * r * r)
            d, least = select_lt(e, least, step, d), min_f32(e, least)
        a = clamp(round_f32(scale * inverse_of(d)))
        least = error(chunk, d * a)
        for i in range(rounds):
            centre = a
            # Few levels to a weight: some other scale may hit the weights that matter most, so all are tried once.
            reach = sweep if i == 0 else min(2, sweep)
            for k in range(-reach, reach + 1):
                if k == 0:
                    continue
                at = clamp(centre + splat_f32(np.float32(k)))
                e = error(chunk, d * at)
                a, least = select_lt(e, least, at, a), min_f32(e, least)
            xq, qq = sums(chunk, inverse_of(d * a))
            new = round_f16x16(total(a * xq) * inverse_of(total(a * a * qq)))
            e = error(chunk, new * a)
            before, after = total(least), total(e)
            d, least = select_lt(after, before, new, d), select_lt(after, before, e, least)
        return d, a

    return scales


def _affine(n: int, most: int, levels: Sequence[tuple[float, float]], top: int, rounds: int, pack: Any) -> Any:
    """Rows of w = d * scale * q - dmin * min in groups of n; q from 0 to most, scales and mins from 0 to top.

    `pack(x, target, block, results, quantize)` stores a block.
    """
    groups = Affine(n, most, levels, below=True)
    anchor, fit, quantize = groups.anchor, groups.fit, groups.quantize
    scales = affine_scales(groups, n, top, rounds)
    per_block = 256 // n

    @register_jitable
    def chunk(x, first, n_groups, target, scratch):
        low, span = anchor(scratch)
        scale, offset = fit(scratch, low, span)
        d, dmin, a, b = scales(scratch, low, scale, offset)
        inverse = inverse_of(d * a)
        results = scratch + RESULTS
        store_f32x16(results + D, d)
        store_f32x16(results + DMIN, dmin)
        store_f32x16(results + SCALE, a)
        store_f32x16(results + MIN, b)
        store_f32x16(results + INVERSE, inverse)
        store_f32x16(results + SHIFT, dmin * b * inverse)
        for i in range(n_groups // per_block):
            pack(x + 1024 * i, target, first // 256 + i, results + 4 * per_block * i, quantize)

    return chunks(n, chunk)


def signed(groups: Scale, n: int, scale_bits: int, rounds: int, sweep: int, level: Any, pack: Any) -> Any:
    """Rows of w = d * scale * q in groups of n, with signed scales of so many bits, 256 weights to a d.

    `pack(x, target, block, results, level)` stores a block; `level` is what codes are made with.
    """
    fit = groups.fit
    scales = signed_scales(groups, n, -(1 << scale_bits - 1), (1 << scale_bits - 1) - 1, rounds, sweep)
    per_block = 256 // n

    @register_jitable
    def chunk(x, first, n_groups, target, scratch):
        d, a = scales(scratch, fit(scratch))
        results = scratch + RESULTS
        store_f32x16(results + D, d)
        store_f32x16(results + SCALE, a)
        store_f32x16(results + INVERSE, inverse_of(d * a))
        for i in range(n_groups // per_block):
            pack(x + 1024 * i, target, first // 256 + i, results + 4 * per_block * i, level)

    return chunks(n, chunk)


D, DMIN, SCALE, MIN, INVERSE, SHIFT = 0, 64, 128, 192, 256, 320
"""Where results are that blocks are packed from: a float for each group, 1 / (d * scale) and dmin * min / (d * scale)
at last."""


@register_jitable
def integer(address):
    return np.int64(load_f32(address))


@register_jitable
def _k_scales(p, results):
    """The twelve bytes of Q4_K's and Q5_K's scales and mins."""
    for g in range(4):
        s0, s1 = integer(results + SCALE + 4 * g), integer(results + SCALE + 4 * g + 16)
        m0, m1 = integer(results + MIN + 4 * g), integer(results + MIN + 4 * g + 16)
        store_i8(p + g, s0 | s1 >> 4 << 6)
        store_i8(p + 4 + g, m0 | m1 >> 4 << 6)
        store_i8(p + 8 + g, s1 & 15 | (m1 & 15) << 4)


@register_jitable
def _pack_q4_k(x, target, block, results, quantize):
    out = target + 144 * block
    store_f16(out, load_f32(results + D))
    store_f16(out + 2, load_f32(results + DMIN))
    _k_scales(out + 4, results)
    for g in range(0, 8, 2):
        for i in range(2):
            q = zero_i32()
            for k in range(2):
                at = results + 4 * (g + k)
                v = load_f32x16(x + 128 * (g + k) + 64 * i)
                level = round_to_i32(quantize(v, splat_at(at + INVERSE), splat_at(at + SHIFT)))
                q = q | level * splat_i32(1 << 4 * k)
            store_i8x16(out + 16 + 16 * g + 16 * i, q)


@register_jitable
def _pack_q5_k(x, target, block, results, quantize):
    out = target + 176 * block
    store_f16(out, load_f32(results + D))
    store_f16(out + 2, load_f32(results + DMIN))
    _k_scales(out + 4, results)
    for i in range(2):
        high = zero_i32()
        for g in range(0, 8, 2):
            low = zero_i32()
            for k in range(2):
                at = results + 4 * (g + k)
                v = load_f32x16(x + 128 * (g + k) + 64 * i)
                level = round_to_i32(quantize(v, splat_at(at + INVERSE), splat_at(at + SHIFT)))
                low = low | (level & splat_i32(15)) * splat_i32(1 << 4 * k)
                high = high | shift_right_i32(level, 4) * splat_i32(1 << g + k)
            store_i8x16(out + 48 + 16 * g + 16 * i, low)
        store_i8x16(out + 16 + 16 * i, high)


@register_jitable
def _pack_q2_k(x, target, block, results, quantize):
    out = target + 84 * block
    store_f16(out + 80, load_f32(results + D))
    store_f16(out + 82, load_f32(results + DMIN))
    for g in range(16):
        store_i8(out + g, integer(results + SCALE + 4 * g) | integer(results + MIN + 4 * g) << 4)
    for h in range(2):
        for i in range(2):
            q = zero_i32()
            for k in range(4):
                g = 8 * h + 2 * k + i
                at = results + 4 * g
                v = load_f32x16(x + 64 * g)
                level = round_to_i32(quantize(v, splat_at(at + INVERSE), splat_at(at + SHIFT)))
                q = q | level * splat_i32(1 << 2 * k)
            store_i8x16(out + 16 + 32 * h + 16 * i, q)


@register_jitable
def _pack_q3_k(x, target, block, results, quantize):
    out = target + 110 * block
    store_f16(out + 108, load_f32(results + D))
    for g in range(8):
        s0, s1 = integer(results + SCALE + 4 * g) + 32, integer(results + SCALE + 4 * g + 32) + 32
        store_i8(out + 96 + g, s0 & 15 | (s1 & 15) << 4)
    for g in range(4):
        high = 0
        for k in range(4):
            high |= (integer(results + SCALE + 4 * (g + 4 * k)) + 32) >> 4 << 2 * k
        store_i8(out + 104 + g, high)
    for i in range(2):
        top = zero_i32()
        for h in range(2):
            q = zero_i32()
            for k in range(4):
                g = 8 * h + 2 * k + i
                level = round_to_i32(quantize(load_f32x16(x + 64 * g), splat_at(results + 4 * g + INVERSE)))
                level = level + splat_i32(4)
                q = q | (level & splat_i32(3)) * splat_i32(1 << 2 * k)
                top = top | shift_right_i32(level, 2) * splat_i32(1 << 4 * h + k)
            store_i8x16(out + 32 + 32 * h + 16 * i, q)
        store_i8x16(out + 16 * i, top)


@register_jitable
def _pack_q6_k(x, target, block, results, quantize):
    out = target + 210 * block
    store_f16(out + 208, load_f32(results + D))
    for g in range(16):
        store_i8(out + 192 + g, integer(results + SCALE + 4 * g))
    for h in range(2):
        for i in range(2):
            high = zero_i32()
            for part in range(2):
                low = zero_i32()
                for k in range(2):
                    g = 8 * h + 2 * (part + 2 * k) + i
                    level = round_to_i32(quantize(load_f32x16(x + 64 * g), splat_at(results + 4 * g + INVERSE)))
                    level = level + splat_i32(32)
                    low = low | (level & splat_i32(15)) * splat_i32(1 << 4 * k)
                    high = high | shift_right_i32(level, 4) * splat_i32(1 << 2 * (part + 2 * k))
                store_i8x16(out + 64 * h + 32 * part + 16 * i, low)
            store_i8x16(out + 128 + 32 * h + 16 * i, high)


def _integers(
    low: int, high: int, extents: Sequence[float], scale_bits: int, rounds: int, sweep: int, pack: Any
) -> Any:
    quantize = integers(low, high)
    return signed(Scale(16, quantize, extents), 16, scale_bits, rounds, sweep, quantize, pack)


_Q6_EXTENTS = [*(float(i) for i in range(22, 28)), *(28 + 0.5 * i for i in range(9))]
_TRIMS = (0.0, 0.02, 0.04, 0.065, 0.1, 0.15)

_ROWS = {
    "Q2_K": lambda: _affine(16, 3, starts(3, (0.0, 0.04, 0.08, 0.13, 0.19, 0.26, 0.34), 2), 15, 5, _pack_q2_k),
    "Q3_K": lambda: _integers(-4, 3, both_signs([2.0 + 0.15 * i for i in range(32)]), 6, 4, 48, _pack_q3_k),
    "Q4_K": lambda: _affine(32, 15, starts(15, (0.0, 0.04, 0.09), 11), 63, 1, _pack_q4_k),
    "Q5_K": lambda: _affine(32, 31, starts(31, _TRIMS, 14), 63, 4, _pack_q5_k),
    "Q6_K": lambda: _integers(-32, 31, both_signs(_Q6_EXTENTS), 8, 1, 1, _pack_q6_k),
}
