"""Encoders of IQ2_XXS, IQ2_XS and IQ2_S: every entry of the codebook is tried (`codebook_search`)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import register_jitable

from pyllm.jit.simd import (
    fma,
    load_f32,
    load_f32x16,
    load_i32,
    load_u8,
    min_f32,
    splat_f32,
    store_f16,
    store_f32x16,
    store_i8,
    store_i16,
    store_i32,
)
from pyllm.quant.kernels.codebook_quads import quads
from pyllm.quant.kernels.codebook_search import (
    BASES,
    ENTRIES,
    PRODUCTS,
    SCALES,
    SUMS,
    WEIGHTS,
    clear_lists,
    enlist,
    fitter,
    guess,
    prepare,
    scan,
    splat_at,
    tiles_table,
)
from pyllm.quant.kernels.rows import encode_rows
from pyllm.quant.kernels.tables import table

_factors = table(lambda: np.geomspace(0.55, 2.1, 16).astype(np.float32).tobytes())
"""Scales that are tried, times the guess."""

_RMS = 25.0
"""Weights of a normal distribution are best encoded with this as their root mean square."""


def encode(format: str, source: str) -> Any:
    """Kernel that encodes rows (`rows.encode_rows`)."""
    n_bytes, group, n, even, pack = _FORMATS[format]
    large = n == 1024
    tiles = tiles_table(format)
    units, n_groups = group // 8, 256 // group
    guess_scales, fit = guess(group, _RMS), fitter(units, 1 / 8, 15, _factors)
    list_best = quads("IQ2_S", (8.0, 25.0, 43.0))

    @register_jitable
    def block(x, w, target, scratch):
        for i in range(n_bytes // 2):
            store_i16(target + 2 * i, 0)
        largest = prepare(x, w, scratch, False)
        if largest == np.float32(0):
            return
        guess_scales(scratch)
        sums = scratch + SUMS
        for g in range(n_groups):
            db = splat_f32(load_f32(scratch + BASES + 4 * g)) * load_f32x16(_factors())
            for u in range(units):
                i = group * g + 8 * u
                odd = even and parity(negatives(x + 4 * i)) != 0
                if large:
                    list_best(scratch, i, u, g, db)
                else:
                    octet_sums(tiles(), scratch + 4 * i, odd, n, sums)
                    enlist(scratch, u, g, sums, n, scan(sums, sums + 4 * n, n, db)[1])
        d = fit(scratch, largest)
        if d > np.float32(0):
            store_f16(target, d)
            for g in range(n_groups):
                s = np.int64(load_f32(scratch + SCALES + 4 * g))
                for u in range(units):
                    i = group * g + 8 * u
                    j = np.int64(load_f32(scratch + ENTRIES + 64 * u + 4 * g))
                    signs = negatives(x + 4 * i)
                    if even and parity(signs) != 0:
                        signs ^= 1 << cheapest(tiles(), scratch + PRODUCTS + 4 * i, j)
                    pack(target, units * g + u, j, signs, s)

    @register_jitable
    def row(x, w, columns, target, scratch):
        clear_lists(scratch)
        for b in range(columns // 256):
            block(x + 1024 * b, w + 1024 * b if w != 0 else 0, target + n_bytes * b, scratch)

    return encode_rows(row, format, source)


@register_jitable
def negatives(x):
    """Signs of 8 values, the first's in the lowest bit."""
    bits = 0
    for i in range(8):
        if load_f32(x + 4 * i) < np.float32(0):
            bits |= 1 << i
    return bits


@register_jitable
def parity(bits):
    bits ^= bits >> 4
    bits ^= bits >> 2
    return (bits ^ bits >> 1) & 1


@register_jitable
def cheapest(tiles, products, j):
    """The weight of eight whose sign costs least to be wrong, encoded as entry j."""
    at = tiles + 512 * (j >> 4) + 4 * (j & 15)
    best, least = 0, load_f32(products) * load_f32(at)
    for i in range(1, 8):
        cost = load_f32(products + 4 * i) * load_f32(at + 64 * i)
        if cost < least:
            best, least = i, cost
    return best


@register_jitable
def octet_sums(tiles, values, odd, n, out):
    """-2 A and B of all entries, of 8 weights at `values` (scratch). Where `odd`, one sign is wrong, the cheapest."""
    w, p = values + WEIGHTS, values + PRODUCTS
    w0, w1, w2, w3 = splat_at(w), splat_at(w + 4), splat_at(w + 8), splat_at(w + 12)
    w4, w5, w6, w7 = splat_at(w + 16), splat_at(w + 20), splat_at(w + 24), splat_at(w + 28)
    p0, p1, p2, p3 = splat_at(p), splat_at(p + 4), splat_at(p + 8), splat_at(p + 12)
    p4, p5, p6, p7 = splat_at(p + 16), splat_at(p + 20), splat_at(p + 24), splat_at(p + 28)
    minus, four = splat_f32(np.float32(-2)), splat_f32(np.float32(4))
    for t in range(n // 16):
        g = tiles + 512 * t
        g0, g1, g2, g3 = load_f32x16(g), load_f32x16(g + 64), load_f32x16(g + 128), load_f32x16(g + 192)
        g4, g5, g6, g7 = load_f32x16(g + 256), load_f32x16(g + 320), load_f32x16(g + 384), load_f32x16(g + 448)
        b = fma(g3 * w3, g3, fma(g2 * w2, g2, fma(g1 * w1, g1, g0 * w0 * g0)))
        b = b + fma(g7 * w7, g7, fma(g6 * w6, g6, fma(g5 * w5, g5, g4 * w4 * g4)))
        if odd:
            g0, g1, g2, g3, g4, g5, g6, g7 = g0 * p0, g1 * p1, g2 * p2, g3 * p3, g4 * p4, g5 * p5, g6 * p6, g7 * p7
            a = ((g0 + g1) + (g2 + g3)) + ((g4 + g5) + (g6 + g7))
            low = min_f32(min_f32(g0, g1), min_f32(g2, g3))
            a = fma(min_f32(low, min_f32(min_f32(g4, g5), min_f32(g6, g7))), four, a * minus)
        else:
            a = fma(g3, p3, fma(g2, p2, fma(g1, p1, g0 * p0))) + fma(g7, p7, fma(g6, p6, fma(g5, p5, g4 * p4)))
            a = a * minus
        store_f32x16(out + 64 * t, a)
        store_f32x16(out + 4 * n + 64 * t, b)


# Each stores the entry, the signs and the scale of octet o. The block was zeroed.


@register_jitable
def _pack_xxs(target, o, entry, signs, s):
    p = target + 2 + 8 * (o >> 2)
    store_i8(p + (o & 3), entry)
    store_i32(p + 4, load_i32(p + 4) | (signs & 127) << 7 * (o & 3) | (s << 28 if o & 3 == 0 else 0))


@register_jitable
def _pack_xs(target, o, entry, signs, s):
    store_i16(target + 2 + 2 * o, entry | (signs & 127) << 9)
    pack_scale(target + 66, o >> 1, s)


@register_jitable
def _pack_s(target, o, entry, signs, s):
    store_i8(target + 2 + o, entry)
    store_i8(target + 34 + o, signs)
    high = target + 66 + (o >> 2)
    store_i8(high, load_u8(high) | entry >> 8 << 2 * (o & 3))
    pack_scale(target + 74, o >> 1, s)


@register_jitable
def pack_scale(p, g, s):
    """Scale of group g, of 4 bits. Storing it again changes nothing."""
    store_i8(p + (g >> 1), load_u8(p + (g >> 1)) | s << 4 * (g & 1))


_FORMATS = {
    "IQ2_XXS": (66, 32, 256, True, _pack_xxs),
    "IQ2_XS": (74, 16, 512, True, _pack_xs),
    "IQ2_S": (82, 16, 1024, False, _pack_s),
}
"""Bytes of a block, weights of a group, entries, whether the number of negative signs of eight is even, packing."""
