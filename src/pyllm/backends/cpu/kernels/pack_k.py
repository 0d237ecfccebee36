"""Super-blocks of 256 columns, from GGUF to panels; part of `pack.py`, with arguments as in `pack_simple.py`."""

from __future__ import annotations

from typing import Any

from numba.extending import register_jitable

from pyllm.backends.cpu.kernels.pack_quads import LOW, ONE, TWO, store2, store3, store4, store5, store6, u32
from pyllm.jit.simd import load_u8, load_u16, store_i8, store_i16


@register_jitable
def _pairs(qs, g, c):
    """Quad c of group g of 256 integers of two bits, in runs of 32 bytes."""
    return (u32(qs + 32 * (g >> 2) + 4 * c) >> 2 * (g & 3)) & TWO


@register_jitable
def _store_pairs(qs, q, r):
    for g in range(8):
        store2(
            q + 128 * g, r, _pairs(qs, g, 0), _pairs(qs, g, 1), _pairs(qs, g, 2), _pairs(qs, g, 3), _pairs(qs, g, 4),
            _pairs(qs, g, 5), _pairs(qs, g, 6), _pairs(qs, g, 7),
        )  # fmt: skip


@register_jitable
def _tq2_0(src, q, s, r):
    store_i16(s + 2 * r, load_u16(src + 64))
    _store_pairs(src, q, r)


@register_jitable
def _q2_k(src, q, s, r):
    """The bytes of scales and minima stay as they are; minima are negated by their factor."""
    for i in range(16):
        store_i8(s + 16 * i + r, load_u8(src + i))
    store_i16(s + 256 + 2 * r, load_u16(src + 80))
    store_i16(s + 288 + 2 * r, load_u16(src + 82) ^ 0x8000)
    _store_pairs(src + 16, q, r)


@register_jitable
def _threes(src, g, c):
    return _pairs(src + 32, g, c) | (u32(src + 4 * c) >> g & ONE) << 2


@register_jitable
def _q3_k(src, q, s, r):
    for i in range(16):
        low = load_u8(src + 96 + (i & 7)) >> 4 * (i >> 3) & 15
        high = load_u8(src + 104 + (i & 3)) >> 2 * (i >> 2) & 3
        store_i8(s + 16 * i + r, (low | high << 4) - 32)
    store_i16(s + 256 + 2 * r, load_u16(src + 108))
    for g in range(8):
        store3(
            q + 192 * g, r, _threes(src, g, 0), _threes(src, g, 1), _threes(src, g, 2), _threes(src, g, 3),
            _threes(src, g, 4), _threes(src, g, 5), _threes(src, g, 6), _threes(src, g, 7),
        )  # fmt: skip


@register_jitable
def _k_scales(src, s, r):
    """d, dmin and the sixteen 6-bit numbers of Q4_K and Q5_K; minima are negated by their factor."""
    for g in range(4):
        low, mid, high = load_u8(src + 4 + g), load_u8(src + 8 + g), load_u8(src + 12 + g)
        store_i8(s + 16 * g + r, low & 63)
        store_i8(s + 128 + 16 * g + r, mid & 63)
        store_i8(s + 16 * (g + 4) + r, (high & 15) | ((low >> 6) << 4))
        store_i8(s + 128 + 16 * (g + 4) + r, (high >> 4) | ((mid >> 6) << 4))
    store_i16(s + 256 + 2 * r, load_u16(src))
    store_i16(s + 288 + 2 * r, load_u16(src + 2) ^ 0x8000)


@register_jitable
def _half(qs, g, c):
    """Quad c of group g of 256 nibbles, in runs of 32 bytes."""
    return (u32(qs + 32 * (g >> 1) + 4 * c) >> 4 * (g & 1)) & LOW


@register_jitable
def _q4_k(src, q, s, r):
    _k_scales(src, s, r)
    p = src + 16
    for g in range(8):
        store4(
            q + 256 * g, r, _half(p, g, 0), _half(p, g, 1), _half(p, g, 2), _half(p, g, 3), _half(p, g, 4),
            _half(p, g, 5), _half(p, g, 6), _half(p, g, 7),
        )  # fmt: skip


@register_jitable
def _fives(src, g, c):
    return _half(src + 48, g, c) | (u32(src + 16 + 4 * c) >> g & ONE) << 4


@register_jitable
def _q5_k(src, q, s, r):
    _k_scales(src, s, r)
    for g in range(8):
        store5(
            q + 320 * g, r, _fives(src, g, 0), _fives(src, g, 1), _fives(src, g, 2), _fives(src, g, 3),
            _fives(src, g, 4), _fives(src, g, 5), _fives(src, g, 6), _fives(src, g, 7),
        )  # fmt: skip


@register_jitable
def _sixes(src, half, part, c):
    low = (u32(src + 64 * half + 32 * (part & 1) + 4 * c) >> 4 * (part >> 1)) & LOW
    return low | (u32(src + 128 + 32 * half + 4 * c) >> 2 * part & TWO) << 4


@register_jitable
def _q6_k(src, q, s, r):
    for h in range(2):
        for p in range(4):
            store6(
                q + 384 * (4 * h + p), r, _sixes(src, h, p, 0), _sixes(src, h, p, 1), _sixes(src, h, p, 2),
                _sixes(src, h, p, 3), _sixes(src, h, p, 4), _sixes(src, h, p, 5), _sixes(src, h, p, 6),
                _sixes(src, h, p, 7),
            )  # fmt: skip
    for i in range(16):
        store_i8(s + 16 * i + r, load_u8(src + 192 + i))
    store_i16(s + 256 + 2 * r, load_u16(src + 208))


@register_jitable
def _iq4_xs(src, q, s, r):
    high = load_u16(src + 2)
    for g in range(8):
        low = load_u8(src + 4 + (g >> 1)) >> 4 * (g & 1) & 15
        store_i8(s + 16 * g + r, (low | (high >> 2 * g & 3) << 4) - 32)
        p = src + 8 + 16 * g
        a, b, c, d = u32(p), u32(p + 4), u32(p + 8), u32(p + 12)
        store4(
            q + 256 * g, r, a & LOW, b & LOW, c & LOW, d & LOW, (a >> 4) & LOW, (b >> 4) & LOW, (c >> 4) & LOW,
            (d >> 4) & LOW,
        )  # fmt: skip
    store_i16(s + 128 + 2 * r, load_u16(src))


SUPER: dict[str, tuple[Any, int]] = {
    "q2_k": (_q2_k, 84),
    "q3_k": (_q3_k, 110),
    "q4_k": (_q4_k, 144),
    "q5_k": (_q5_k, 176),
    "q6_k": (_q6_k, 210),
    "iq4_xs": (_iq4_xs, 136),
    "tq2_0": (_tq2_0, 66),
}
"""Packs one block; bytes of a GGUF block."""
