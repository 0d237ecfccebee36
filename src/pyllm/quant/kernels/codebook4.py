"""Encoders of the formats whose 4-bit codes stand for 16 values: IQ4_NL, IQ4_XS, MXFP4, NVFP4."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numba.extending import register_jitable

from pyllm.jit.simd import (
    abs_f32,
    load_f32,
    load_f32x16,
    load_i8,
    load_i32,
    max_f32,
    min_f32,
    round_to_i32,
    select_lt,
    splat_f32,
    splat_i32,
    store_f16,
    store_f32,
    store_f32x16,
    store_i8,
    store_i8x16,
    store_i16,
    store_i32,
    zero_f32,
)
from pyllm.quant.formats.iq4_nl import VALUES as IQ4_VALUES
from pyllm.quant.formats.mxfp4 import VALUES as FP4_VALUES
from pyllm.quant.formats.nvfp4 import scales as nvfp4_scales
from pyllm.quant.kernels.k_quants import INVERSE, SCALE, D, integer, signed
from pyllm.quant.kernels.rows import encode_rows
from pyllm.quant.kernels.vertical import (
    RESULTS,
    Scale,
    both_signs,
    chunks,
    finer,
    inverse_of,
    splat_at,
)


def encode(format: str, source: str) -> Any:
    """Kernel that encodes rows (`rows.encode_rows`)."""
    return encode_rows(_ROWS[format](), format, source, level=format == "MXFP4")


def _steps(values: Sequence[float], results: Sequence[float]) -> Any:
    """choose(t): the one of `results` whose place in ascending `values` is that of the value nearest to t."""
    middles = [np.float32((a + b) / 2) for a, b in pairwise(values)]
    table = np.array([*zip(middles, results[1:], strict=True)], np.float32)
    first = np.float32(results[0])

    @register_jitable
    def choose(t):
        out = splat_f32(first)
        for i in range(len(table)):
            out = select_lt(splat_f32(table[i, 0]), t, splat_f32(table[i, 1]), out)
        return out

    return choose


def _iq4() -> tuple[Any, Any]:
    """value(x, inverse) and code(x, inverse) of IQ4_NL and IQ4_XS."""
    values = [float(v) for v in IQ4_VALUES]
    value_of, code_of = _steps(values, values), _steps(values, range(16))

    @register_jitable
    def value(x, inverse):
        return value_of(x * inverse)

    @register_jitable
    def code(x, inverse):
        return code_of(x * inverse)

    return value, code


def _fp4() -> tuple[Any, Any]:
    """value(x, inverse) and code(x, inverse) of MXFP4 and NVFP4: the code's top bit is the sign."""
    values = [float(v) for v in FP4_VALUES[:8]]
    value_of, code_of = _steps(values, values), _steps(values, range(8))

    @register_jitable
    def value(x, inverse):
        t = x * inverse
        v = value_of(abs_f32(t))
        return select_lt(t, zero_f32(), zero_f32() - v, v)

    @register_jitable
    def code(x, inverse):
        t = x * inverse
        c = code_of(abs_f32(t))
        return select_lt(t, zero_f32(), c + splat_f32(np.float32(8)), c)

    return value, code


_IQ4_EXTENTS = [
    92.0,
    97.0,
    101.0,
    105.0,
    109.0,
    113.0,
    117.0,
    122.0,
    127.0,
    132.0,
    138.0,
    145.0,
    153.0,
    163.0,
    177.0,
    195.0,
]


def _iq4_nl() -> Any:
    value, code = _iq4()
    groups = Scale(32, value, both_signs(_IQ4_EXTENTS))
    fit, error, sums = groups.fit, groups.error, groups.sums

    @register_jitable
    def chunk(x, first, n_groups, target, scratch):
        scale = fit(scratch)
        xq, qq = sums(scratch, inverse_of(scale))
        scale = finer(error, scratch, xq * inverse_of(qq))
        store_f32x16(scratch + RESULTS, scale)
        store_f32x16(scratch + RESULTS + 64, inverse_of(scale))
        for g in range(n_groups):
            out, at = target + 18 * (first // 32 + g), scratch + RESULTS + 4 * g
            store_f16(out, load_f32(at))
            _nibbles(out + 2, x + 128 * g, splat_at(at + 64), code)

    return chunks(32, chunk)


@register_jitable
def _nibbles(target, x, inverse, code):
    """16 bytes: codes of 32 weights, the first 16 below."""
    low = round_to_i32(code(load_f32x16(x), inverse))
    store_i8x16(target, low | round_to_i32(code(load_f32x16(x + 64), inverse)) * splat_i32(16))


def _iq4_xs() -> Any:
    value, code = _iq4()
    return signed(Scale(32, value, both_signs(_IQ4_EXTENTS)), 32, 6, 2, 2, code, _pack_iq4_xs)


@register_jitable
def _pack_iq4_xs(x, target, block, results, code):
    out = target + 136 * block
    store_f16(out, load_f32(results + D))
    high = 0
    for g in range(0, 8, 2):
        s0, s1 = integer(results + SCALE + 4 * g) + 32, integer(results + SCALE + 4 * g + 4) + 32
        store_i8(out + 4 + g // 2, s0 & 15 | (s1 & 15) << 4)
        high |= (s0 >> 4 | s1 >> 4 << 2) << 2 * g
    store_i16(out + 2, high)
    for g in range(8):
        _nibbles(out + 8 + 16 * g, x + 128 * g, splat_at(results + INVERSE + 4 * g), code)


def _mxfp4() -> Any:
    value, code = _fp4()
    error = Scale(32, value, []).error

    @register_jitable
    def chunk(x, first, n_groups, target, scratch):
        peak = zero_f32()
        for j in range(32):
            peak = max_f32(peak, abs_f32(load_f32x16(scratch + 64 * j)))
        # The power of two at or below what would make the largest weight 12, and its neighbours.
        results = scratch + RESULTS
        store_f32x16(results, peak * splat_f32(np.float32(1 / 12)))
        for g in range(16):
            store_i32(results + 4 * g, load_i32(results + 4 * g) >> 23 << 23)
        power = load_f32x16(results)
        scale, least = power, error(scratch, power)
        for k in (0.5, 2.0, 4.0):
            other = power * splat_f32(np.float32(k))
            e = error(scratch, other)
            scale, least = select_lt(e, least, other, scale), min_f32(e, least)
        store_f32x16(results, scale)
        store_f32x16(results + 64, inverse_of(scale))
        for g in range(n_groups):
            out = target + 17 * (first // 32 + g)
            store_i8(out, (load_i32(results + 4 * g) >> 23) + 1)
            _nibbles(out + 1, x + 128 * g, splat_at(results + 64 + 4 * g), code)

    # Powers of two leave too little to choose for magnitudes to make a difference.
    return chunks(32, chunk, level=True)


def _nvfp4() -> Any:
    value, code = _fp4()
    groups = Scale(
        16, value, [2.0, 3.0, 4.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.5, 16.0, 18.0, 20.0, 22.0, 24.5, 27.0]
    )
    fit, error = groups.fit, groups.error
    scales = nvfp4_scales()

    @register_jitable
    def chunk(x, first, n_groups, target, scratch):
        results = scratch + RESULTS
        codes = results + 256
        store_f32x16(results, fit(scratch))
        for g in range(16):
            # The three bits of mantissa and the exponent are a float32's own, but for the smallest.
            s = load_f32(results + 4 * g)
            c = (load_i32(results + 4 * g) >> 20) - (119 << 3) if s >= 2.0**-7 else np.int64(s * np.float32(1024))
            store_i32(codes + 4 * g, min(c, 126))
        best, best_step, least = zero_f32(), zero_f32(), error(scratch, zero_f32())
        for step in range(-3, 5):
            for g in range(16):
                c = min(max(load_i32(codes + 4 * g) + step, 0), 126)
                store_f32(results + 4 * g, scales[c])
            scale = load_f32x16(results)
            e = error(scratch, scale)
            best, best_step = (
                select_lt(e, least, scale, best),
                select_lt(e, least, splat_f32(np.float32(step)), best_step),
            )
            least = min_f32(e, least)
        store_f32x16(results, best)
        store_f32x16(results + 64, inverse_of(best))
        store_f32x16(results + 128, best_step)
        for g in range(n_groups):
            out, at = target + 36 * ((first // 16 + g) // 4), (first // 16 + g) % 4
            c = min(max(load_i32(codes + 4 * g) + integer(results + 128 + 4 * g), 0), 126)
            store_i8(out + at, c if load_f32(results + 4 * g) > np.float32(0) else 0)
            q = round_to_i32(code(load_f32x16(x + 64 * g), splat_at(results + 64 + 4 * g)))
            store_i8x16(results + 192, q)
            for i in range(8):
                store_i8(out + 4 + 8 * at + i, load_i8(results + 192 + i) | load_i8(results + 200 + i) << 4)

    return chunks(16, chunk)


_ROWS = {"IQ4_NL": _iq4_nl, "IQ4_XS": _iq4_xs, "MXFP4": _mxfp4, "NVFP4": _nvfp4}
