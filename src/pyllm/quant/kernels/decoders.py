"""Blocks decoded to float32, compiled: what `QuantFormat.decode_blocks` says, one block at a time (sources there)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import register_jitable

from pyllm.jit.simd import (
    load_f16,
    load_f32,
    load_i8,
    load_i32,
    load_u8,
    load_u8x16,
    load_u16,
    shift_right_i32,
    splat_f32,
    splat_i32,
    store_f32,
    store_f32x16,
    store_i32,
    to_f32,
)
from pyllm.quant.formats.iq4_nl import VALUES as IQ4_VALUES
from pyllm.quant.formats.mxfp4 import VALUES as FP4_VALUES
from pyllm.quant.formats.nvfp4 import scales
from pyllm.quant.kernels.decoders_iq import IQ_BLOCKS
from pyllm.quant.kernels.tables import table

_iq4_values = table(IQ4_VALUES.tobytes)
_fp4_values = table(FP4_VALUES.tobytes)
_nvfp4_scales = table(lambda: scales().tobytes())


@register_jitable
def _f(q):
    return np.float32(q)


# Each decodes one block at `src` to float32 at `dst`.


@register_jitable
def _f32(src, dst):
    store_i32(dst, load_i32(src))


@register_jitable
def _f16(src, dst):
    store_f32(dst, load_f16(src))


@register_jitable
def _bf16(src, dst):
    store_i32(dst, load_u16(src) << 16)


@register_jitable
def _q4_0(src, dst):
    d = load_f16(src)
    for j in range(16):
        q = load_u8(src + 2 + j)
        store_f32(dst + 4 * j, d * _f((q & 15) - 8))
        store_f32(dst + 64 + 4 * j, d * _f((q >> 4) - 8))


@register_jitable
def _q4_1(src, dst):
    d, m = load_f16(src), load_f16(src + 2)
    for j in range(16):
        q = load_u8(src + 4 + j)
        store_f32(dst + 4 * j, d * _f(q & 15) + m)
        store_f32(dst + 64 + 4 * j, d * _f(q >> 4) + m)


@register_jitable
def _q5_0(src, dst):
    d, high = load_f16(src), load_i32(src + 2)
    for j in range(16):
        q = load_u8(src + 6 + j)
        store_f32(dst + 4 * j, d * _f((q & 15 | (high >> j & 1) << 4) - 16))
        store_f32(dst + 64 + 4 * j, d * _f((q >> 4 | (high >> j + 16 & 1) << 4) - 16))


@register_jitable
def _q5_1(src, dst):
    d, m, high = load_f16(src), load_f16(src + 2), load_i32(src + 4)
    for j in range(16):
        q = load_u8(src + 8 + j)
        store_f32(dst + 4 * j, d * _f(q & 15 | (high >> j & 1) << 4) + m)
        store_f32(dst + 64 + 4 * j, d * _f(q >> 4 | (high >> j + 16 & 1) << 4) + m)


@register_jitable
def _q8_0(src, dst):
    d = load_f16(src)
    for j in range(32):
        store_f32(dst + 4 * j, d * _f(load_i8(src + 2 + j)))


@register_jitable
def _q2_k(src, dst):
    d, dmin = load_f16(src + 80), load_f16(src + 82)
    for g in range(16):
        sc = load_u8(src + g)
        scale, low = d * _f(sc & 15), dmin * _f(sc >> 4)
        qs, shift = src + 16 + 32 * (g >> 3) + 16 * (g & 1), 2 * (g >> 1 & 3)
        for j in range(16):
            store_f32(dst + 64 * g + 4 * j, scale * _f(load_u8(qs + j) >> shift & 3) - low)


@register_jitable
def _q3_k(src, dst):
    d = load_f16(src + 108)
    for g in range(16):
        low = load_u8(src + 96 + (g & 7)) >> 4 * (g >> 3) & 15
        high = load_u8(src + 104 + (g & 3)) >> 2 * (g >> 2) & 3
        scale = d * _f((low | high << 4) - 32)
        half, bit, shift = 16 * (g & 1), g >> 1, 2 * (g >> 1 & 3)
        for j in range(16):
            q = load_u8(src + 32 + 32 * (g >> 3) + half + j) >> shift & 3
            top = load_u8(src + half + j) >> bit & 1
            store_f32(dst + 64 * g + 4 * j, scale * _f(q - 4 + 4 * top))


@register_jitable
def _k_scale(p, g):
    """6-bit scale g of the twelve bytes at p."""
    if g < 4:
        return load_u8(p + g) & 63
    return load_u8(p + g + 4) & 15 | load_u8(p + g - 4) >> 6 << 4


@register_jitable
def _k_min(p, g):
    if g < 4:
        return load_u8(p + g + 4) & 63
    return load_u8(p + g + 4) >> 4 | load_u8(p + g) >> 6 << 4


@register_jitable
def _q4_k(src, dst):
    d, dmin = load_f16(src), load_f16(src + 2)
    for g in range(8):
        scale, low = d * _f(_k_scale(src + 4, g)), dmin * _f(_k_min(src + 4, g))
        qs, shift = src + 16 + 32 * (g >> 1), 4 * (g & 1)
        for j in range(0, 32, 16):
            q = to_f32(shift_right_i32(load_u8x16(qs + j), shift) & splat_i32(15))
            store_f32x16(dst + 128 * g + 4 * j, splat_f32(scale) * q - splat_f32(low))


@register_jitable
def _q5_k(src, dst):
    d, dmin = load_f16(src), load_f16(src + 2)
    for g in range(8):
        scale, low = d * _f(_k_scale(src + 4, g)), dmin * _f(_k_min(src + 4, g))
        qs, shift = src + 48 + 32 * (g >> 1), 4 * (g & 1)
        for j in range(0, 32, 16):
            q = shift_right_i32(load_u8x16(qs + j), shift) & splat_i32(15)
            q = q | (shift_right_i32(load_u8x16(src + 16 + j), g) & splat_i32(1)) * splat_i32(16)
            store_f32x16(dst + 128 * g + 4 * j, splat_f32(scale) * to_f32(q) - splat_f32(low))


@register_jitable
def _q6_k(src, dst):
    d = load_f16(src + 208)
    for g in range(16):
        scale = d * _f(load_i8(src + 192 + g))
        half, part, sub = g >> 3, g >> 1 & 3, 16 * (g & 1)
        low, shift = src + 64 * half + 32 * (part & 1) + sub, 4 * (part >> 1)
        high = src + 128 + 32 * half + sub
        q = shift_right_i32(load_u8x16(low), shift) & splat_i32(15)
        q = q | (shift_right_i32(load_u8x16(high), 2 * part) & splat_i32(3)) * splat_i32(16)
        store_f32x16(dst + 64 * g, splat_f32(scale) * (to_f32(q) - splat_f32(np.float32(32))))


@register_jitable
def _q8_1(src, dst):
    d = load_f16(src)
    for j in range(32):
        store_f32(dst + 4 * j, d * _f(load_i8(src + 4 + j)))


@register_jitable
def _q8_k(src, dst):
    d = load_f32(src)
    for j in range(256):
        store_f32(dst + 4 * j, d * _f(load_i8(src + 4 + j)))


@register_jitable
def _q1_0(src, dst):
    d = load_f16(src)
    for j in range(128):
        store_f32(dst + 4 * j, d if load_u8(src + 2 + (j >> 3)) >> (j & 7) & 1 else -d)


@register_jitable
def _q2_0(src, dst):
    d = load_f16(src)
    for j in range(64):
        store_f32(dst + 4 * j, d * _f((load_u8(src + 2 + (j >> 2)) >> 2 * (j & 3) & 3) - 1))


# Nibbles that stand for values of a table.


@register_jitable
def _nibbles(values, src, n, scale, dst):
    """n bytes: first the weights in their low halves, then those in their high halves."""
    for j in range(n):
        q = load_u8(src + j)
        store_f32(dst + 4 * j, scale * _f(load_i8(values + (q & 15))))
        store_f32(dst + 4 * (n + j), scale * _f(load_i8(values + (q >> 4))))


@register_jitable
def _iq4_nl(src, dst):
    _nibbles(_iq4_values(), src + 2, 16, load_f16(src), dst)


@register_jitable
def _iq4_xs(src, dst):
    d, high = load_f16(src), load_u16(src + 2)
    for g in range(8):
        low = load_u8(src + 4 + (g >> 1)) >> 4 * (g & 1) & 15
        scale = d * _f((low | (high >> 2 * g & 3) << 4) - 32)
        _nibbles(_iq4_values(), src + 8 + 16 * g, 16, scale, dst + 128 * g)


@register_jitable
def _mxfp4(src, dst):
    e = load_u8(src)
    store_i32(dst, 1 << 21 + e if e < 2 else e - 1 << 23)  # a float32's bits, widened through memory that is at hand
    _nibbles(_fp4_values(), src + 1, 16, load_f32(dst), dst)


@register_jitable
def _nvfp4(src, dst):
    for g in range(4):
        scale = load_f32(_nvfp4_scales() + 4 * load_u8(src + g))
        _nibbles(_fp4_values(), src + 4 + 8 * g, 8, scale, dst + 64 * g)


# Three values.


@register_jitable
def _tq1_0(src, dst):
    d = load_f16(src + 52)
    for i in range(52):
        q = load_u8(src + i)
        # weights of a run of bytes: where they start, how far a byte's are apart, how many a byte has
        if i < 32:
            first, step, n = i, 32, 5
        elif i < 48:
            first, step, n = 128 + i, 16, 5
        else:
            first, step, n = 192 + i, 4, 4
        for k in range(n):
            store_f32(dst + 4 * (first + step * k), d * _f((3 * q >> 8) - 1))
            q = 3 * q & 255


@register_jitable
def _tq2_0(src, dst):
    d = load_f16(src + 64)
    for j in range(256):
        q = load_u8(src + 32 * (j >> 7) + (j & 31)) >> 2 * (j >> 5 & 3) & 3
        store_f32(dst + 4 * j, d * _f(q - 1))


BLOCKS: dict[str, tuple[Any, int, int]] = {
    "F32": (_f32, 1, 4),
    "F16": (_f16, 1, 2),
    "BF16": (_bf16, 1, 2),
    "Q4_0": (_q4_0, 32, 18),
    "Q4_1": (_q4_1, 32, 20),
    "Q5_0": (_q5_0, 32, 22),
    "Q5_1": (_q5_1, 32, 24),
    "Q8_0": (_q8_0, 32, 34),
    "Q2_K": (_q2_k, 256, 84),
    "Q3_K": (_q3_k, 256, 110),
    "Q4_K": (_q4_k, 256, 144),
    "Q5_K": (_q5_k, 256, 176),
    "Q6_K": (_q6_k, 256, 210),
    "Q8_1": (_q8_1, 32, 36),
    "Q8_K": (_q8_k, 256, 292),
    "Q1_0": (_q1_0, 128, 18),
    "Q2_0": (_q2_0, 64, 18),
    "IQ4_NL": (_iq4_nl, 32, 18),
    "IQ4_XS": (_iq4_xs, 256, 136),
    "MXFP4": (_mxfp4, 32, 17),
    "NVFP4": (_nvfp4, 64, 36),
    "TQ1_0": (_tq1_0, 256, 54),
    "TQ2_0": (_tq2_0, 256, 66),
    **IQ_BLOCKS,
}
"""Decoder, weights and bytes of a block, by format."""
