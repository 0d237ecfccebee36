"""Encoders of IQ1_S and IQ1_M: the best of all entries of the codebook, with either shift (`codebook_search`)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import register_jitable

from pyllm.jit.simd import (
    load_f32,
    load_f32x16,
    load_u8,
    load_u16,
    store_f16,
    store_f32x16,
    store_i8,
    store_i16,
)
from pyllm.quant.kernels.codebook_quads import quads
from pyllm.quant.kernels.codebook_search import (
    BASES,
    ENTRIES,
    SCALES,
    TEMPORARY,
    fitter,
    guess,
    prepare,
    splat_at,
)
from pyllm.quant.kernels.rows import encode_rows
from pyllm.quant.kernels.tables import table

_factors = table(lambda: np.tile(np.geomspace(0.65, 2.0, 8), 2).astype(np.float32).tobytes())
"""Scales that are tried, times the guess; with either shift."""

_RMS = 0.8
"""Weights of a normal distribution are best encoded with this as their root mean square."""


def encode(format: str, source: str) -> Any:
    """Kernel that encodes rows (`rows.encode_rows`)."""
    block, n_bytes = {"IQ1_S": (_iq1_s(), 50), "IQ1_M": (_iq1_m(), 56)}[format]

    @register_jitable
    def row(x, w, columns, target, scratch):
        for b in range(columns // 256):
            to = target + n_bytes * b
            for i in range(n_bytes // 2):
                store_i16(to + 2 * i, 0)
            block(x + 1024 * b, w + 1024 * b if w != 0 else 0, to, scratch)

    return encode_rows(row, format, source)


def _iq1_s() -> Any:
    guess_scales, fit = guess(32, _RMS), fitter(4, 1.0, 7, _factors, tried=8, paired=True)
    list_best = quads("IQ1_S", (-1.0, 0.0, 1.0), 1 / 8, apart=True)

    @register_jitable
    def block(x, w, target, scratch):
        largest = prepare(x, w, scratch, True)
        if largest == np.float32(0):
            return
        guess_scales(scratch)
        # Lanes 8 .. 15 are the groups with the other shift.
        store_f32x16(scratch + TEMPORARY, load_f32x16(scratch + BASES))
        store_f32x16(scratch + BASES + 32, load_f32x16(scratch + TEMPORARY))
        for g in range(8):
            db = splat_at(scratch + BASES + 4 * g) * load_f32x16(_factors())
            for u in range(4):
                list_best(scratch, 32 * g + 8 * u, u, g, db)
        d = fit(scratch, largest)
        if not d > np.float32(0):
            return
        store_f16(target, d)
        for g in range(8):
            shift = 0 if load_f32(scratch + SCALES + 4 * g) >= np.float32(0) else 1
            lane = 4 * (g + 8 * shift)
            high = np.int64(load_f32(scratch + SCALES + lane)) << 12 | shift << 15
            for u in range(4):
                j = np.int64(load_f32(scratch + ENTRIES + 64 * u + lane))
                store_i8(target + 2 + 4 * g + u, j)
                high |= j >> 8 << 3 * u
            store_i16(target + 34 + 2 * g, high)

    return block


def _iq1_m() -> Any:
    guess_scales, fit = guess(16, _RMS), fitter(2, 1.0, 7, _factors)
    list_best = quads("IQ1_S", (-1.0, 0.0, 1.0), 1 / 8)

    @register_jitable
    def block(x, w, target, scratch):
        largest = prepare(x, w, scratch, True)
        if largest == np.float32(0):
            return
        guess_scales(scratch)
        for g in range(16):
            db = splat_at(scratch + BASES + 4 * g) * load_f32x16(_factors())
            for u in range(2):
                list_best(scratch, 16 * g + 8 * u, u, g, db)
        d = fit(scratch, largest)
        if not d > np.float32(0):
            return
        store_f16(scratch + TEMPORARY, d)
        bits = load_u16(scratch + TEMPORARY)
        for g in range(16):
            word, lane = target + 48 + 2 * (g >> 2), 4 * g
            s = np.int64(load_f32(scratch + SCALES + lane))
            store_i16(word, load_u16(word) | s << 3 * (g & 3))
            for u in range(2):
                j = np.int64(load_f32(scratch + ENTRIES + 64 * u + lane))
                store_i8(target + 2 * g + u, j)
                store_i8(target + 32 + g, load_u8(target + 32 + g) | j >> 8 << 4 * u)
        for i in range(4):
            word = target + 48 + 2 * i
            store_i16(word, load_u16(word) | (bits >> 4 * i & 15) << 12)

    return block
