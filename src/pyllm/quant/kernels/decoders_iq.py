"""Blocks of the formats with codebooks decoded to float32, compiled; part of `pyllm.quant.kernels.decoders`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import register_jitable

from pyllm.jit.simd import load_f16, load_i8, load_i32, load_u8, load_u16, store_f32, store_i16
from pyllm.quant.kernels.tables import codebook_table

_iq1_codebook = codebook_table("IQ1_S")
_iq2_xxs_codebook = codebook_table("IQ2_XXS")
_iq2_xs_codebook = codebook_table("IQ2_XS")
_iq2_s_codebook = codebook_table("IQ2_S")
_iq3_xxs_codebook = codebook_table("IQ3_XXS")
_iq3_s_codebook = codebook_table("IQ3_S")


@register_jitable
def even_signs(code):
    """Eight signs out of seven bits: the number of ones becomes even."""
    parity = code ^ code >> 4
    parity ^= parity >> 2
    return code | ((parity ^ parity >> 1) & 1) << 7


@register_jitable
def _signed(group, n, scale, signs, dst):
    """n values of a codebook at `group`, scaled; where the sign's bit is set, negative."""
    for j in range(n):
        v = scale * np.float32(load_i8(group + j))
        store_f32(dst + 4 * j, -v if signs >> j & 1 else v)


@register_jitable
def _half_and_quarter(d, scale):
    return d * (np.float32(0.5) + np.float32(scale)) * np.float32(0.25)


@register_jitable
def _iq2_xxs(src, dst):
    d, book = load_f16(src), _iq2_xxs_codebook()
    for g in range(8):
        p = src + 2 + 8 * g
        packed = load_i32(p + 4)
        db = _half_and_quarter(d, packed >> 28 & 15)
        for k in range(4):
            signs = even_signs(packed >> 7 * k & 127)
            _signed(book + 8 * load_u8(p + k), 8, db, signs, dst + 128 * g + 32 * k)


@register_jitable
def _iq2_xs(src, dst):
    d, book = load_f16(src), _iq2_xs_codebook()
    for k in range(32):
        db = _half_and_quarter(d, load_u8(src + 66 + (k >> 2)) >> 4 * (k >> 1 & 1) & 15)
        q = load_u16(src + 2 + 2 * k)
        _signed(book + 8 * (q & 511), 8, db, even_signs(q >> 9), dst + 32 * k)


@register_jitable
def _iq2_s(src, dst):
    d, book = load_f16(src), _iq2_s_codebook()
    for k in range(32):
        db = _half_and_quarter(d, load_u8(src + 74 + (k >> 2)) >> 4 * (k >> 1 & 1) & 15)
        high = load_u8(src + 66 + (k >> 2)) >> 2 * (k & 3) & 3
        _signed(book + 8 * (load_u8(src + 2 + k) | high << 8), 8, db, load_u8(src + 34 + k), dst + 32 * k)


@register_jitable
def _iq3_xxs(src, dst):
    d, book = load_f16(src), _iq3_xxs_codebook()
    for g in range(8):
        packed = load_i32(src + 66 + 4 * g)
        db = d * (np.float32(0.5) + np.float32(packed >> 28 & 15)) * np.float32(0.5)
        for k in range(8):
            signs = even_signs(packed >> 7 * (k >> 1) & 127) >> 4 * (k & 1)
            _signed(book + 4 * load_u8(src + 2 + 8 * g + k), 4, db, signs, dst + 128 * g + 16 * k)


@register_jitable
def _iq3_s(src, dst):
    d, book = load_f16(src), _iq3_s_codebook()
    for g in range(8):
        db = d * np.float32(2 * (load_u8(src + 106 + (g >> 1)) >> 4 * (g & 1) & 15) + 1)
        high = load_u8(src + 66 + g)
        for k in range(8):
            index = load_u8(src + 2 + 8 * g + k) | (high >> k & 1) << 8
            signs = load_u8(src + 74 + 4 * g + (k >> 1)) >> 4 * (k & 1)
            _signed(book + 4 * index, 4, db, signs, dst + 128 * g + 16 * k)


@register_jitable
def _shifted(group, scale, negative, dst):
    shift = np.float32(-0.125) if negative != 0 else np.float32(0.125)
    for j in range(8):
        store_f32(dst + 4 * j, scale * (np.float32(load_i8(group + j)) + shift))


@register_jitable
def _iq1_s(src, dst):
    d, book = load_f16(src), _iq1_codebook()
    for g in range(8):
        qh = load_u16(src + 34 + 2 * g)
        dl = d * np.float32(2 * (qh >> 12 & 7) + 1)
        for k in range(4):
            index = load_u8(src + 2 + 4 * g + k) | (qh >> 3 * k & 7) << 8
            _shifted(book + 8 * index, dl, qh >> 15, dst + 128 * g + 32 * k)


@register_jitable
def _iq1_m(src, dst):
    bits = 0
    for i in range(4):
        bits |= load_u16(src + 48 + 2 * i) >> 12 << 4 * i
    store_i16(dst, bits)  # halves are widened from memory, and this is at hand
    d, book = load_f16(dst), _iq1_codebook()
    for k in range(32):
        g = k >> 1
        dl = d * np.float32(2 * (load_u16(src + 48 + 2 * (g >> 2)) >> 3 * (g & 3) & 7) + 1)
        high = load_u8(src + 32 + g) >> 4 * (k & 1)
        _shifted(book + 8 * (load_u8(src + k) | (high & 7) << 8), dl, high & 8, dst + 32 * k)


IQ_BLOCKS: dict[str, tuple[Any, int, int]] = {
    "IQ1_S": (_iq1_s, 256, 50),
    "IQ1_M": (_iq1_m, 256, 56),
    "IQ2_XXS": (_iq2_xxs, 256, 66),
    "IQ2_XS": (_iq2_xs, 256, 74),
    "IQ2_S": (_iq2_s, 256, 82),
    "IQ3_XXS": (_iq3_xxs, 256, 98),
    "IQ3_S": (_iq3_s, 256, 110),
}
