"""Encoders of the formats with one scale, or a scale and a least weight, to 32 weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba.extending import register_jitable

from pyllm.jit.simd import (
    lane_bits,
    load_f32,
    load_f32x16,
    round_f16x16,
    round_to_i32,
    select_lt,
    splat_f32,
    splat_i32,
    store_f16,
    store_f32x16,
    store_i8x16,
    store_i32,
    zero_f32,
)
from pyllm.quant.kernels.rows import encode_rows
from pyllm.quant.kernels.vertical import (
    RESULTS,
    Affine,
    Scale,
    both_signs,
    chunks,
    finer,
    integers,
    inverse_of,
    splat_at,
    starts,
)


def encode(format: str, source: str) -> Any:
    """Kernel that encodes rows (`rows.encode_rows`)."""
    return encode_rows(_ROWS[format](), format, source)


def _scaled(low: int, high: int, extents: Sequence[float], block_bytes: int, pack: Any) -> Any:
    """Rows of w = d * q, q from low to high. `pack(target, q0, q1)` stores a block's levels, d excepted."""
    quantize = integers(low, high)
    groups = Scale(32, quantize, extents)
    fit, error, sums = groups.fit, groups.error, groups.sums

    @register_jitable
    def chunk(x, first, n_groups, target, scratch):
        scale = fit(scratch)
        xq, qq = sums(scratch, inverse_of(scale))
        scale = finer(error, scratch, xq * inverse_of(qq))
        store_f32x16(scratch + RESULTS, scale)
        store_f32x16(scratch + RESULTS + 64, inverse_of(scale))
        for g in range(n_groups):
            out = target + block_bytes * (first // 32 + g)
            store_f16(out, load_f32(scratch + RESULTS + 4 * g))
            inverse = splat_at(scratch + RESULTS + 64 + 4 * g)
            q0 = quantize(load_f32x16(x + 128 * g), inverse)
            q1 = quantize(load_f32x16(x + 128 * g + 64), inverse)
            pack(out, round_to_i32(q0), round_to_i32(q1))

    return chunks(32, chunk)


def _affine(most: int, levels: Sequence[tuple[float, float]], block_bytes: int, pack: Any) -> Any:
    """Rows of w = d * q + m, q from 0 to most. `pack(target, q0, q1)` stores a block's levels, d and m excepted."""
    groups = Affine(32, most, levels, below=False)
    anchor, fit, error, quantize = groups.anchor, groups.fit, groups.error, groups.quantize

    @register_jitable
    def chunk(x, first, n_groups, target, scratch):
        low, span = anchor(scratch)
        scale, offset = fit(scratch, low, span)
        scale, base = round_f16x16(scale), round_f16x16(low + offset)
        least = error(scratch, scale, base - low)
        # Weights that were quantized before, to as many levels or half as many: the least and the largest are levels.
        for n_steps in (most, most // 2):
            s, m = round_f16x16(span * splat_f32(np.float32(1 / n_steps))), round_f16x16(low)
            e = error(scratch, s, m - low)
            scale, base = select_lt(e, least, s, scale), select_lt(e, least, m, base)
            least = select_lt(e, least, e, least)
        for i in range(16):
            k = i & 7
            a, b = (k + (k > 3)) // 3 - 1, (k + (k > 3)) % 3 - 1
            s = round_f16x16(scale * splat_f32(np.float32(1 + a / 1024)))
            m = round_f16x16(base * splat_f32(np.float32(1 + b / 1024)))
            e = error(scratch, s, m - low)
            scale, base = select_lt(e, least, s, scale), select_lt(e, least, m, base)
            least = select_lt(e, least, e, least)
        inverse = inverse_of(scale)
        store_f32x16(scratch + RESULTS, scale)
        store_f32x16(scratch + RESULTS + 64, base)
        store_f32x16(scratch + RESULTS + 128, inverse)
        store_f32x16(scratch + RESULTS + 192, zero_f32() - base * inverse)
        for g in range(n_groups):
            out, at = target + block_bytes * (first // 32 + g), scratch + RESULTS + 4 * g
            store_f16(out, load_f32(at))
            store_f16(out + 2, load_f32(at + 64))
            q0 = quantize(load_f32x16(x + 128 * g), splat_at(at + 128), splat_at(at + 192))
            q1 = quantize(load_f32x16(x + 128 * g + 64), splat_at(at + 128), splat_at(at + 192))
            pack(out, round_to_i32(q0), round_to_i32(q1))

    return chunks(32, chunk)


def _nibbles(at: int, bias: int) -> Any:
    """pack: four bits of each level + bias, from byte `at` on."""

    @register_jitable
    def pack(target, q0, q1):
        mask = splat_i32(15)
        q0, q1 = (q0 + splat_i32(bias)) & mask, (q1 + splat_i32(bias)) & mask
        store_i8x16(target + at, q0 | q1 * splat_i32(16))

    return pack


def _fives(at: int, bias: int) -> Any:
    """pack: the fifth bits of each level + bias from byte `at` on, then the four below."""
    low = _nibbles(at + 4, bias)

    @register_jitable
    def pack(target, q0, q1):
        low(target, q0, q1)
        fifth = splat_i32(16)
        bits = lane_bits((q0 + splat_i32(bias)) & fifth) | lane_bits((q1 + splat_i32(bias)) & fifth) << 16
        store_i32(target + at, bits)

    return pack


@register_jitable
def _bytes(target, q0, q1):
    store_i8x16(target + 2, q0)
    store_i8x16(target + 18, q1)


def _steps(low: float, step: float, count: int) -> list[float]:
    return [low + step * i for i in range(count)]


_TRIMS = (0.0, 0.02, 0.04, 0.065, 0.1, 0.15)

_ROWS = {
    "Q4_0": lambda: _scaled(-8, 7, both_signs(_steps(6.0, 0.25, 30)), 18, _nibbles(2, 8)),
    "Q5_0": lambda: _scaled(-16, 15, both_signs(_steps(12.0, 0.25, 44)), 22, _fives(2, 16)),
    "Q8_0": lambda: _scaled(-127, 127, _steps(118.0, 0.5, 57), 34, _bytes),
    "Q4_1": lambda: _affine(15, starts(15, _TRIMS, 8), 20, _nibbles(4, 0)),
    "Q5_1": lambda: _affine(31, starts(31, _TRIMS, 14), 24, _fives(4, 0)),
}
