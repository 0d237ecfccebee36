"""Super-blocks with codebooks, from GGUF to panels: groups of weights are looked up here, once. Part of `pack.py`, with
arguments as in `pack_simple.py`. Scales s of three or four bits stand for 2 s + 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import register_jitable

from pyllm.backends.cpu.kernels.pack_quads import ONE, spread_bits, store2, store3, store4, u32
from pyllm.jit.simd import load_u8, load_u16, store_i8, store_i16
from pyllm.quant.codebooks import codebook
from pyllm.quant.kernels.decoders_iq import even_signs
from pyllm.quant.kernels.tables import table


def _codes(format: str) -> Any:
    """The table of a codebook: a byte a value, its rank among the values that there are."""
    return table(lambda: np.unique(codebook(format), return_inverse=True)[1].astype(np.uint8).tobytes())


_iq1_codes, _iq2_xxs_codes, _iq2_xs_codes, _iq2_s_codes, _iq3_xxs_codes, _iq3_s_codes = (
    _codes(f) for f in ("IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")
)


@register_jitable
def _signed(codes, signs, bit):
    """Four codes with their signs at a bit above them."""
    return u32(codes) | spread_bits(signs & 15) << bit


@register_jitable
def _store_eights(q, r, e, s0, f, s1, g, s2, h, s3):
    """Four times eight codes of two bits, and their signs."""
    store3(
        q, r, _signed(e, s0, 2), _signed(e + 4, s0 >> 4, 2), _signed(f, s1, 2), _signed(f + 4, s1 >> 4, 2),
        _signed(g, s2, 2), _signed(g + 4, s2 >> 4, 2), _signed(h, s3, 2), _signed(h + 4, s3 >> 4, 2),
    )  # fmt: skip


@register_jitable
def _scales16(src, s, r):
    """Sixteen scales of four bits."""
    for i in range(16):
        store_i8(s + 16 * i + r, 2 * (load_u8(src + (i >> 1)) >> 4 * (i & 1) & 15) + 1)


@register_jitable
def _iq2_xxs(src, q, s, r):
    book = _iq2_xxs_codes()
    for g in range(8):
        p = src + 2 + 8 * g
        x = u32(p + 4)
        store_i8(s + 16 * g + r, 2 * (x >> 28) + 1)
        _store_eights(
            q + 192 * g, r, book + 8 * load_u8(p), even_signs(x & 127), book + 8 * load_u8(p + 1),
            even_signs(x >> 7 & 127), book + 8 * load_u8(p + 2), even_signs(x >> 14 & 127), book + 8 * load_u8(p + 3),
            even_signs(x >> 21 & 127),
        )  # fmt: skip
    store_i16(s + 128 + 2 * r, load_u16(src))


@register_jitable
def _iq2_xs(src, q, s, r):
    book = _iq2_xs_codes()
    for g in range(8):
        p = src + 2 + 8 * g
        a, b, c, d = load_u16(p), load_u16(p + 2), load_u16(p + 4), load_u16(p + 6)
        _store_eights(
            q + 192 * g, r, book + 8 * (a & 511), even_signs(a >> 9), book + 8 * (b & 511), even_signs(b >> 9),
            book + 8 * (c & 511), even_signs(c >> 9), book + 8 * (d & 511), even_signs(d >> 9),
        )  # fmt: skip
    _scales16(src + 66, s, r)
    store_i16(s + 256 + 2 * r, load_u16(src))


@register_jitable
def _iq2_s(src, q, s, r):
    book = _iq2_s_codes()
    for g in range(8):
        p, x, high = src + 2 + 4 * g, src + 34 + 4 * g, load_u8(src + 66 + g)
        _store_eights(
            q + 192 * g, r, book + 8 * (load_u8(p) | (high & 3) << 8), load_u8(x),
            book + 8 * (load_u8(p + 1) | (high >> 2 & 3) << 8), load_u8(x + 1),
            book + 8 * (load_u8(p + 2) | (high >> 4 & 3) << 8), load_u8(x + 2),
            book + 8 * (load_u8(p + 3) | (high >> 6 & 3) << 8), load_u8(x + 3),
        )  # fmt: skip
    _scales16(src + 74, s, r)
    store_i16(s + 256 + 2 * r, load_u16(src))


@register_jitable
def _iq3_xxs(src, q, s, r):
    book = _iq3_xxs_codes()
    for g in range(8):
        p, x = src + 2 + 8 * g, u32(src + 66 + 4 * g)
        store_i8(s + 16 * g + r, 2 * (x >> 28) + 1)
        e, f, h, i = (even_signs(x & 127), even_signs(x >> 7 & 127), even_signs(x >> 14 & 127),
                      even_signs(x >> 21 & 127))  # fmt: skip
        store4(
            q + 256 * g, r, _signed(book + 4 * load_u8(p), e, 3), _signed(book + 4 * load_u8(p + 1), e >> 4, 3),
            _signed(book + 4 * load_u8(p + 2), f, 3), _signed(book + 4 * load_u8(p + 3), f >> 4, 3),
            _signed(book + 4 * load_u8(p + 4), h, 3), _signed(book + 4 * load_u8(p + 5), h >> 4, 3),
            _signed(book + 4 * load_u8(p + 6), i, 3), _signed(book + 4 * load_u8(p + 7), i >> 4, 3),
        )  # fmt: skip
    store_i16(s + 128 + 2 * r, load_u16(src))


@register_jitable
def _odd(book, src, g, c):
    """Quad c of group g: odd numbers from -15 to 15 as halves of what they are above -15."""
    high = load_u8(src + 66 + g) >> c & 1
    signs = load_u8(src + 74 + 4 * g + (c >> 1)) >> 4 * (c & 1) & 15
    codes = u32(book + 4 * (load_u8(src + 2 + 8 * g + c) | high << 8))
    return (codes | 8 * ONE) ^ 15 * spread_bits(signs)


@register_jitable
def _iq3_s(src, q, s, r):
    book = _iq3_s_codes()
    for g in range(8):
        store_i8(s + 16 * g + r, 2 * (load_u8(src + 106 + (g >> 1)) >> 4 * (g & 1) & 15) + 1)
        store4(
            q + 256 * g, r, _odd(book, src, g, 0), _odd(book, src, g, 1), _odd(book, src, g, 2),
            _odd(book, src, g, 3), _odd(book, src, g, 4), _odd(book, src, g, 5), _odd(book, src, g, 6),
            _odd(book, src, g, 7),
        )  # fmt: skip
    store_i16(s + 128 + 2 * r, load_u16(src))


@register_jitable
def _iq1_s(src, q, s, r):
    """weight = d / 8 * (8 n q - n (8 -+ 1)) with n = 2 s + 1 and q in 0 .. 2: integers and minima."""
    book = _iq1_codes()
    for g in range(8):
        p, x = src + 2 + 4 * g, load_u16(src + 34 + 2 * g)
        n = 2 * (x >> 12 & 7) + 1
        store_i8(s + 16 * g + r, 8 * n)
        store_i8(s + 128 + 16 * g + r, n * (9 if x >> 15 != 0 else 7))
        e = book + 8 * (load_u8(p) | (x & 7) << 8)
        f = book + 8 * (load_u8(p + 1) | (x >> 3 & 7) << 8)
        h = book + 8 * (load_u8(p + 2) | (x >> 6 & 7) << 8)
        i = book + 8 * (load_u8(p + 3) | (x >> 9 & 7) << 8)
        store2(q + 128 * g, r, u32(e), u32(e + 4), u32(f), u32(f + 4), u32(h), u32(h + 4), u32(i), u32(i + 4))
    store_i16(s + 256 + 2 * r, load_u16(src))
    store_i16(s + 288 + 2 * r, load_u16(src) ^ 0x8000)


@register_jitable
def _shifted(high):
    """Signs that are all those of the shift."""
    return 255 if high & 8 != 0 else 0


@register_jitable
def _iq1_m(src, q, s, r):
    book, d = _iq1_codes(), 0
    for i in range(4):
        x = load_u16(src + 48 + 2 * i)
        d |= x >> 12 << 4 * i
        for k in range(4):
            store_i8(s + 64 * i + 16 * k + r, 2 * (x >> 3 * k & 7) + 1)
    store_i16(s + 256 + 2 * r, d)
    for g in range(8):
        p, x, y = src + 4 * g, load_u8(src + 32 + 2 * g), load_u8(src + 33 + 2 * g)
        _store_eights(
            q + 192 * g, r, book + 8 * (load_u8(p) | (x & 7) << 8), _shifted(x),
            book + 8 * (load_u8(p + 1) | (x >> 4 & 7) << 8), _shifted(x >> 4),
            book + 8 * (load_u8(p + 2) | (y & 7) << 8), _shifted(y),
            book + 8 * (load_u8(p + 3) | (y >> 4 & 7) << 8), _shifted(y >> 4),
        )  # fmt: skip


CODEBOOKS: dict[str, tuple[Any, int]] = {
    "iq1_s": (_iq1_s, 50),
    "iq1_m": (_iq1_m, 56),
    "iq2_xxs": (_iq2_xxs, 66),
    "iq2_xs": (_iq2_xs, 74),
    "iq2_s": (_iq2_s, 82),
    "iq3_xxs": (_iq3_xxs, 98),
    "iq3_s": (_iq3_s, 110),
}
"""Packs one block; bytes of a GGUF block."""
