"""Blocks of a float scale and small integers, from GGUF to panels; part of `pack.py`.

Each packs one block of one row: `src` is the GGUF block, `q` the integers of the panel's block, `s` its scales, r the
row. Sources of the layouts: `pyllm.quant.formats`.
"""

from __future__ import annotations

from typing import Any

from numba.extending import register_jitable

from pyllm.backends.cpu.kernels.pack_quads import (
    LOW,
    TWO,
    spread_bits,
    store1,
    store2,
    store4,
    store5,
    store8,
    u32,
)
from pyllm.jit.simd import load_u8, load_u16, store_i8, store_i16


@register_jitable
def _nibbles(qs, q, r):
    """16 bytes: the low nibbles are the first 16 columns."""
    a, b, c, d = u32(qs), u32(qs + 4), u32(qs + 8), u32(qs + 12)
    store4(
        q, r, a & LOW, b & LOW, c & LOW, d & LOW, (a >> 4) & LOW, (b >> 4) & LOW, (c >> 4) & LOW, (d >> 4) & LOW
    )  # fmt: skip


@register_jitable
def _fifth(bits, c):
    """Bit c of quads' columns, as the fifth of bytes."""
    return spread_bits((bits >> 4 * c) & 15) << 4


@register_jitable
def _nibbles5(qs, bits, q, r):
    a, b, c, d = u32(qs), u32(qs + 4), u32(qs + 8), u32(qs + 12)
    store5(
        q, r, a & LOW | _fifth(bits, 0), b & LOW | _fifth(bits, 1), c & LOW | _fifth(bits, 2),
        d & LOW | _fifth(bits, 3), (a >> 4) & LOW | _fifth(bits, 4), (b >> 4) & LOW | _fifth(bits, 5),
        (c >> 4) & LOW | _fifth(bits, 6), (d >> 4) & LOW | _fifth(bits, 7),
    )  # fmt: skip


@register_jitable
def _q4_0(src, q, s, r):
    store_i16(s + 2 * r, load_u16(src))
    _nibbles(src + 2, q, r)


@register_jitable
def _q4_1(src, q, s, r):
    store_i16(s + 2 * r, load_u16(src))
    store_i16(s + 32 + 2 * r, load_u16(src + 2))
    _nibbles(src + 4, q, r)


@register_jitable
def _q5_0(src, q, s, r):
    store_i16(s + 2 * r, load_u16(src))
    _nibbles5(src + 6, u32(src + 2), q, r)


@register_jitable
def _q5_1(src, q, s, r):
    store_i16(s + 2 * r, load_u16(src))
    store_i16(s + 32 + 2 * r, load_u16(src + 2))
    _nibbles5(src + 8, u32(src + 4), q, r)


@register_jitable
def _q8_0(src, q, s, r):
    store_i16(s + 2 * r, load_u16(src))
    p, m = src + 2, 0x80808080
    store8(
        q, r, u32(p) ^ m, u32(p + 4) ^ m, u32(p + 8) ^ m, u32(p + 12) ^ m, u32(p + 16) ^ m, u32(p + 20) ^ m,
        u32(p + 24) ^ m, u32(p + 28) ^ m,
    )  # fmt: skip


@register_jitable
def _mxfp4(src, q, s, r):
    """The exponent becomes a bfloat16, half as large, for the values are doubled: 2^-128 and 2^-127 are subnormal."""
    e = load_u8(src)
    store_i16(s + 2 * r, 32 << e if e < 2 else (e - 1) << 7)
    _nibbles(src + 1, q, r)


@register_jitable
def _nvfp4(src, q, s, r):
    for i in range(4):
        code = load_u8(src + i)
        store_i8(s + 16 * i + r, 0 if code == 0x7F else code & 0x7F)
    for g in range(2):
        p = src + 4 + 16 * g
        a, b, c, d = u32(p), u32(p + 4), u32(p + 8), u32(p + 12)
        store4(
            q + 256 * g, r, a & LOW, b & LOW, (a >> 4) & LOW, (b >> 4) & LOW, c & LOW, d & LOW, (c >> 4) & LOW,
            (d >> 4) & LOW,
        )  # fmt: skip


@register_jitable
def _bits(p, c):
    """Quad c of 32 bits."""
    return spread_bits((load_u8(p + (c >> 1)) >> 4 * (c & 1)) & 15)


@register_jitable
def _q1_0(src, q, s, r):
    store_i16(s + 2 * r, load_u16(src))
    for g in range(4):
        p = src + 2 + 4 * g
        store1(
            q + 64 * g, r, _bits(p, 0), _bits(p, 1), _bits(p, 2), _bits(p, 3), _bits(p, 4), _bits(p, 5), _bits(p, 6),
            _bits(p, 7),
        )  # fmt: skip


@register_jitable
def _fours(p):
    """A byte's four integers of two bits as the bytes of a word."""
    x = load_u8(p)
    return (x | x << 6 | x << 12 | x << 18) & TWO


@register_jitable
def _q2_0(src, q, s, r):
    store_i16(s + 2 * r, load_u16(src))
    for g in range(2):
        p = src + 2 + 8 * g
        store2(
            q + 128 * g, r, _fours(p), _fours(p + 1), _fours(p + 2), _fours(p + 3), _fours(p + 4), _fours(p + 5),
            _fours(p + 6), _fours(p + 7),
        )  # fmt: skip


@register_jitable
def _digit(p, n):
    """Digits n of four bytes, each of which is a fraction in base 3 of which the first digit is the highest."""
    x, even = u32(p), 0x00FF00FF
    power = 1 if n == 0 else 3 if n == 1 else 9 if n == 2 else 27 if n == 3 else 81
    a = (((x & even) * power & even) * 3 >> 8) & TWO & even
    b = (((x >> 8 & even) * power & even) * 3 >> 8) & TWO & even
    return a | b << 8


@register_jitable
def _tq1_0(src, q, s, r):
    store_i16(s + 2 * r, load_u16(src + 52))
    for g in range(5):
        store2(
            q + 128 * g, r, _digit(src, g), _digit(src + 4, g), _digit(src + 8, g), _digit(src + 12, g),
            _digit(src + 16, g), _digit(src + 20, g), _digit(src + 24, g), _digit(src + 28, g),
        )  # fmt: skip
    p, high = src + 32, src + 48
    for g in range(2):
        store2(
            q + 640 + 128 * g, r, _digit(p, 2 * g), _digit(p + 4, 2 * g), _digit(p + 8, 2 * g), _digit(p + 12, 2 * g),
            _digit(p, 2 * g + 1), _digit(p + 4, 2 * g + 1), _digit(p + 8, 2 * g + 1), _digit(p + 12, 2 * g + 1),
        )  # fmt: skip
    store2(
        q + 896, r, _digit(p, 4), _digit(p + 4, 4), _digit(p + 8, 4), _digit(p + 12, 4), _digit(high, 0),
        _digit(high, 1), _digit(high, 2), _digit(high, 3),
    )  # fmt: skip


SIMPLE: dict[str, tuple[Any, int]] = {
    "q4_0": (_q4_0, 18),
    "q4_1": (_q4_1, 20),
    "q5_0": (_q5_0, 22),
    "q5_1": (_q5_1, 24),
    "q8_0": (_q8_0, 34),
    "iq4_nl": (_q4_0, 18),
    "mxfp4": (_mxfp4, 17),
    "nvfp4": (_nvfp4, 36),
    "q1_0": (_q1_0, 18),
    "q2_0": (_q2_0, 18),
    "tq1_0": (_tq1_0, 54),
}
"""Packs one block; bytes of a GGUF block."""
