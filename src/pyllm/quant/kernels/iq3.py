"""Encoders of IQ3_XXS and IQ3_S: every entry of the codebook is tried (`codebook_search`)."""

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
    select_lt,
    splat_f32,
    store_f16,
    store_f32,
    store_f32x16,
    store_i8,
    store_i16,
    store_i32,
)
from pyllm.quant.kernels.codebook_search import (
    BASES,
    ENTRIES,
    LISTS,
    PRODUCTS,
    SCALES,
    SUMS,
    TEMPORARY,
    UNIT_BYTES,
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
from pyllm.quant.kernels.iq2 import negatives, pack_scale, parity
from pyllm.quant.kernels.rows import encode_rows
from pyllm.quant.kernels.tables import table

_factors = table(lambda: np.geomspace(0.55, 2.1, 16).astype(np.float32).tobytes())
"""Scales that are tried, times the guess."""


def encode(format: str, source: str) -> Any:
    """Kernel that encodes rows (`rows.encode_rows`)."""
    block, n_bytes = {"IQ3_XXS": (_iq3_xxs(), 98), "IQ3_S": (_iq3_s(), 110)}[format]

    @register_jitable
    def row(x, w, columns, target, scratch):
        clear_lists(scratch)
        for b in range(columns // 256):
            to = target + n_bytes * b
            for i in range(n_bytes // 2):
                store_i16(to + 2 * i, 0)
            block(x + 1024 * b, w + 1024 * b if w != 0 else 0, to, scratch)

    return encode_rows(row, format, source)


@register_jitable
def _quad_sums(tiles, values, n, out):
    """-2 A, B, and -2 A with the cheapest sign wrong, of all entries, of 4 weights at `values` (scratch)."""
    w, p = values + WEIGHTS, values + PRODUCTS
    w0, w1, w2, w3 = splat_at(w), splat_at(w + 4), splat_at(w + 8), splat_at(w + 12)
    p0, p1, p2, p3 = splat_at(p), splat_at(p + 4), splat_at(p + 8), splat_at(p + 12)
    minus, four = splat_f32(np.float32(-2)), splat_f32(np.float32(4))
    for t in range(n // 16):
        g = tiles + 256 * t
        g0, g1, g2, g3 = load_f32x16(g), load_f32x16(g + 64), load_f32x16(g + 128), load_f32x16(g + 192)
        b = fma(g3 * w3, g3, fma(g2 * w2, g2, fma(g1 * w1, g1, g0 * w0 * g0)))
        g0, g1, g2, g3 = g0 * p0, g1 * p1, g2 * p2, g3 * p3
        a = ((g0 + g1) + (g2 + g3)) * minus
        store_f32x16(out + 64 * t, a)
        store_f32x16(out + 4 * n + 64 * t, b)
        store_f32x16(out + 8 * n + 64 * t, fma(min_f32(min_f32(g0, g1), min_f32(g2, g3)), four, a))


def _iq3_s() -> Any:
    tiles = tiles_table("IQ3_S")
    guess_scales, fit = guess(32, 6.0), fitter(8, 1.0, 15, _factors)

    @register_jitable
    def block(x, w, target, scratch):
        largest = prepare(x, w, scratch, False)
        if largest == np.float32(0):
            return
        guess_scales(scratch)
        sums = scratch + SUMS
        for g in range(8):
            db = splat_f32(load_f32(scratch + BASES + 4 * g)) * load_f32x16(_factors())
            for u in range(8):
                _quad_sums(tiles(), scratch + 128 * g + 16 * u, 512, sums)
                enlist(scratch, u, g, sums, 512, scan(sums, sums + 2048, 512, db)[1])
        d = fit(scratch, largest)
        if not d > np.float32(0):
            return
        store_f16(target, d)
        for g in range(8):
            pack_scale(target + 106, g, np.int64(load_f32(scratch + SCALES + 4 * g)))
            high = 0
            for u in range(8):
                j = np.int64(load_f32(scratch + ENTRIES + 64 * u + 4 * g))
                store_i8(target + 2 + 8 * g + u, j)
                high |= int(j >> 8 << u)
            store_i8(target + 66 + g, high)
            for o in range(4):
                store_i8(target + 74 + 4 * g + o, negatives(x + 128 * g + 32 * o))

    return block


def _iq3_xxs() -> Any:
    tiles = tiles_table("IQ3_XXS")
    guess_scales, fit = guess(32, 24.0), fitter(4, 1 / 4, 15, _factors)
    n = 256

    @register_jitable
    def octet(scratch, o, odd, db):
        """Lists of an octet, two entries as one number: the first, 256 times the second, 65536 times which is odd."""
        first, second = scratch + SUMS, scratch + SUMS + 12 * n
        _quad_sums(tiles(), scratch + 32 * o, n, first)
        _quad_sums(tiles(), scratch + 32 * o + 16, n, second)
        e0, j0 = scan(first, first + 4 * n, n, db)
        e1, j1 = scan(second, second + 4 * n, n, db)
        number = fma(j1, splat_f32(np.float32(256)), j0)
        if odd:
            # One of the two has a wrong sign.
            o0, k0 = scan(first + 8 * n, first + 4 * n, n, db)
            o1, k1 = scan(second + 8 * n, second + 4 * n, n, db)
            one, two = splat_f32(np.float32(65536)), splat_f32(np.float32(131072))
            number = select_lt(
                o0 + e1,
                e0 + o1,
                fma(j1, splat_f32(np.float32(256)), k0 + one),
                fma(k1, splat_f32(np.float32(256)), j0 + two),
            )
        store_f32x16(scratch + TEMPORARY, number)
        to = scratch + LISTS + UNIT_BYTES * (o & 3) + 4 * (o >> 2)
        for k in range(16):
            value = load_f32(scratch + TEMPORARY + 4 * k)
            j = np.int64(value)
            p, q = first + 4 * (j & 255), second + 4 * (j >> 8 & 255)
            a = load_f32(p + 8 * n if j >> 16 == 1 else p) + load_f32(q + 8 * n if j >> 16 == 2 else q)
            store_f32(to + 192 * k, a)
            store_f32(to + 192 * k + 64, load_f32(p + 4 * n) + load_f32(q + 4 * n))
            store_f32(to + 192 * k + 128, value)

    @register_jitable
    def block(x, w, target, scratch):
        largest = prepare(x, w, scratch, False)
        if largest == np.float32(0):
            return
        guess_scales(scratch)
        for o in range(32):
            db = splat_f32(load_f32(scratch + BASES + 4 * (o >> 2))) * load_f32x16(_factors())
            octet(scratch, o, parity(negatives(x + 32 * o)) != 0, db)
        d = fit(scratch, largest)
        if not d > np.float32(0):
            return
        store_f16(target, d)
        for o in range(32):
            j = np.int64(load_f32(scratch + ENTRIES + 64 * (o & 3) + 4 * (o >> 2)))
            store_i8(target + 2 + 2 * o, j)
            store_i8(target + 3 + 2 * o, j >> 8)
            signs = negatives(x + 32 * o)
            if j >> 16 != 0:
                half = (j >> 16) - 1
                signs ^= 1 << 4 * half + _cheapest(
                    tiles(), scratch + PRODUCTS + 32 * o + 16 * half, j >> 8 * half & 255
                )
            word = target + 66 + 4 * (o >> 2)
            store_i32(word, load_i32(word) | (signs & 127) << 7 * (o & 3))
        for g in range(8):
            word = target + 69 + 4 * g
            store_i8(word, load_u8(word) | np.int64(load_f32(scratch + SCALES + 4 * g)) << 4)

    return block


@register_jitable
def _cheapest(tiles, products, j):
    """The weight of four whose sign costs least to be wrong, encoded as entry j."""
    at = tiles + 256 * (j >> 4) + 4 * (j & 15)
    best, least = 0, load_f32(products) * load_f32(at)
    for i in range(1, 4):
        cost = load_f32(products + 4 * i) * load_f32(at + 64 * i)
        if cost < least:
            best, least = i, cost
    return best
