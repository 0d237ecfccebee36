"""Encoders of the formats of one to two bits whose blocks have a single scale: TQ1_0, TQ2_0, Q1_0, Q2_0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba.extending import register_jitable

from pyllm.jit.simd import (
    lane_bits,
    load_f32,
    load_f32x16,
    load_u8,
    load_u8x16,
    round_to_i32,
    select_lt,
    shift_right_i32,
    splat_f32,
    splat_i32,
    store_f16,
    store_f32x16,
    store_i8,
    store_i8x16,
    store_i16,
    zero_f32,
    zero_i32,
)
from pyllm.quant.kernels.rows import encode_rows
from pyllm.quant.kernels.vertical import RESULTS, Scale, both_signs, chunks, finer, integers, inverse_of, splat_at

_CODES = RESULTS + 1024
"""Where a block's 256 codes are put together."""


def encode(format: str, source: str) -> Any:
    """Kernel that encodes rows (`rows.encode_rows`)."""
    return encode_rows(_ROWS[format](), format, source, level=format == "Q1_0")


def _single(size: int, quantize: Any, extents: Sequence[float], block_bytes: int, at: int, bias: int, pack: Any) -> Any:
    """Rows of blocks of `size` weights with a scale at byte `at`. `pack(target, codes)`: codes are levels + bias."""
    per_block = size // 16
    groups = Scale(16, quantize, extents, per_block)
    fit, error, sums = groups.fit, groups.error, groups.sums

    @register_jitable
    def chunk(x, first, n_groups, target, scratch):
        scale = fit(scratch)
        xq, qq = sums(scratch, inverse_of(scale))
        scale = finer(error, scratch, xq * inverse_of(qq))
        store_f32x16(scratch + RESULTS, scale)
        store_f32x16(scratch + RESULTS + 64, inverse_of(scale))
        for i in range(n_groups // per_block):
            out, result = target + block_bytes * (first // size + i), scratch + RESULTS + 4 * per_block * i
            store_f16(out + at, load_f32(result))
            for g in range(per_block):
                q = quantize(load_f32x16(x + 4 * size * i + 64 * g), splat_at(result + 64))
                store_i8x16(scratch + _CODES + 16 * g, round_to_i32(q) + splat_i32(bias))
            pack(out, scratch + _CODES)

    # With one bit, the scale is the mean magnitude: weighing by magnitude would only make it larger.
    return chunks(16, chunk, level=size == 128)


@register_jitable
def _sign(x, inverse):
    return select_lt(x * inverse, zero_f32(), splat_f32(np.float32(-1)), splat_f32(np.float32(1)))


@register_jitable
def _pack_tq1_0(target, codes):
    """Five codes are the digits of a number to the base 3; it is stored times 256 / 243, rounded up."""
    for i in range(3):
        # Two runs of 16 bytes with weights 32 apart, then one with weights 16 apart.
        start, apart = (16 * i, 32) if i < 2 else (160, 16)
        value = zero_i32()
        for k in range(5):
            value = value * splat_i32(3) + load_u8x16(codes + start + apart * k)
        # 69043 / 2^24 is 1 / 243, just above, and exact enough for all numbers that come here.
        scaled = shift_right_i32((value * splat_i32(256) + splat_i32(242)) * splat_i32(69043), 24)
        store_i8x16(target + 16 * i, scaled)
    for i in range(4):
        value = 0
        for k in range(4):
            value = value * 3 + load_u8(codes + 240 + i + 4 * k)
        store_i8(target + 48 + i, (value * 3 * 256 + 242) // 243)


@register_jitable
def _pack_tq2_0(target, codes):
    for h in range(2):
        for i in range(2):
            value = zero_i32()
            for k in range(4):
                value = value | load_u8x16(codes + 128 * h + 32 * k + 16 * i) * splat_i32(1 << 2 * k)
            store_i8x16(target + 32 * h + 16 * i, value)


@register_jitable
def _pack_q1_0(target, codes):
    """Codes are 0 and 2 for -1 and 1."""
    for i in range(8):
        store_i16(target + 2 + 2 * i, lane_bits(load_u8x16(codes + 16 * i)))


@register_jitable
def _pack_q2_0(target, codes):
    for i in range(16):
        byte = 0
        for k in range(4):
            byte |= load_u8(codes + 4 * i + k) << 2 * k
        store_i8(target + 2 + i, byte)


_TERNARY = [0.75 * 1.125**i for i in range(24)] + [1.0]

_ROWS = {
    "TQ1_0": lambda: _single(256, integers(-1, 1), _TERNARY, 54, 52, 1, _pack_tq1_0),
    "TQ2_0": lambda: _single(256, integers(-1, 1), _TERNARY, 66, 64, 1, _pack_tq2_0),
    "Q1_0": lambda: _single(128, _sign, [1.0], 18, 0, 1, _pack_q1_0),
    "Q2_0": lambda: _single(64, integers(-1, 2), both_signs([0.8 + 0.1 * i for i in range(50)]), 18, 0, 1, _pack_q2_0),
}
