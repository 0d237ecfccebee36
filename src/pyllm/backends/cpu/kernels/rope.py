"""Rotary positions: a step's table of cosines and sines, and the rotation of a head, with an optional norm before it.

A table has one row per token. Pairs (i, i + half): cos [half] | sin [half]. Interleaved pairs (2i, 2i + 1): each cosine
twice [2 half] | each sine twice, first negated [2 half]. Either part is padded to a multiple of 16 floats.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import register_jitable

from pyllm.backends.cpu.arguments.rope import Rotate, Table
from pyllm.jit.reader import reader
from pyllm.jit.simd import (
    atomic_add,
    first_lane,
    fma,
    hsum_f32,
    load_f32,
    load_f32x16,
    load_i32,
    load_i64,
    splat_f32,
    sqrt_f32,
    store_f32,
    store_f32x16,
    zero_f32,
)
from pyllm.jit.simd.core import F32X16, op, shuffle

read_table = reader(Table)
read_rotate = reader(Rotate)

TOKENS_PER_ITEM = 16

# pi/2 in three parts; the first two have 33 bits each, so that whole multiples up to 2^20 are exact (fdlibm's
# e_rem_pio2).
_PIO2_1, _PIO2_2, _PIO2_3 = 1.57079632673412561417e00, 6.07710050630396597660e-11, 2.02226624879595063154e-21
_TWO_OVER_PI = 6.36619772367581382433e-01
_ROUND = 6755399441055744.0  # 1.5 * 2^52: adding it leaves a whole number
# Minimax polynomials of sine and cosine on [-pi/4, pi/4] (fdlibm's k_sin, k_cos).
_S = (-1.66666666666666324348e-01, 8.33333333332248946124e-03, -1.98412698298579493134e-04, 2.75573137070700676789e-06,
      -2.50507602534068634195e-08)  # fmt: skip
_C = (4.16666666666666019037e-02, -1.38888888888741095749e-03, 2.48015872894767294178e-05, -2.75573143513906633035e-07,
      2.08757232129817482790e-09)  # fmt: skip
_S1, _S2, _S3, _S4, _S5 = _S
_C1, _C2, _C3, _C4, _C5 = _C


@op(F32X16, F32X16)
def swap_pairs(b, a):
    """Lanes 2i and 2i + 1 exchanged."""
    return shuffle(b, a[0], a[0], [i ^ 1 for i in range(16)])


def table(interleaved: int) -> Any:
    """Cosines and sines of a step's tokens.

    The angle is a float32 product, as models are trained; its sine and cosine are exact to float32 up to 1e6 turns.
    """

    def kernel(args, thread, n_threads):
        a = read_table(args)
        n_tokens = load_i64(a.step + 8)
        positions = load_i64(a.step + 48)
        while True:
            first = atomic_add(a.counter, 1) * TOKENS_PER_ITEM
            if first >= n_tokens:
                break
            for t in range(first, min(first + TOKENS_PER_ITEM, n_tokens)):
                position = np.float32(load_i32(positions + 4 * t))
                cos_row = a.table + t * a.ld_table
                sin_row = cos_row + a.ld_table // 2
                for i in range(a.half):
                    x = np.float64(position * load_f32(a.inv_freq + 4 * i))
                    n = (x * _TWO_OVER_PI + _ROUND) - _ROUND
                    x = ((x - n * _PIO2_1) - n * _PIO2_2) - n * _PIO2_3
                    z = x * x
                    s = x + x * z * (_S1 + z * (_S2 + z * (_S3 + z * (_S4 + z * _S5))))
                    c = 1.0 - 0.5 * z + z * z * (_C1 + z * (_C2 + z * (_C3 + z * (_C4 + z * _C5))))
                    quadrant = np.int64(n) & 3
                    if quadrant & 1:
                        s, c = c, -s
                    if quadrant & 2:
                        s, c = -s, -c
                    cos, sin = np.float32(c * a.mscale), np.float32(s * a.mscale)
                    if interleaved:
                        store_f32(cos_row + 8 * i, cos)
                        store_f32(cos_row + 8 * i + 4, cos)
                        store_f32(sin_row + 8 * i, -sin)
                        store_f32(sin_row + 8 * i + 4, sin)
                    else:
                        store_f32(cos_row + 4 * i, cos)
                        store_f32(sin_row + 4 * i, sin)

    return kernel


@register_jitable
def rotate_pairs(src, dst, cos_row, sin_row, half):
    """Rotate the columns (i, i + half); `dst` may be `src`."""
    other = 4 * half
    whole = half // 16 * 16
    for i in range(0, whole, 16):
        a = load_f32x16(src + 4 * i)
        b = load_f32x16(src + other + 4 * i)
        c = load_f32x16(cos_row + 4 * i)
        s = load_f32x16(sin_row + 4 * i)
        store_f32x16(dst + 4 * i, a * c - b * s)
        store_f32x16(dst + other + 4 * i, fma(a, s, b * c))
    for i in range(whole, half):
        x = load_f32(src + 4 * i)
        y = load_f32(src + other + 4 * i)
        cos = load_f32(cos_row + 4 * i)
        sin = load_f32(sin_row + 4 * i)
        store_f32(dst + 4 * i, x * cos - y * sin)
        store_f32(dst + other + 4 * i, x * sin + y * cos)


@register_jitable
def rotate_interleaved(src, dst, cos_row, sin_row, half):
    """Rotate the columns (2i, 2i + 1); `dst` may be `src`."""
    n = 2 * half
    whole = n // 16 * 16
    for i in range(0, whole, 16):
        x = load_f32x16(src + 4 * i)
        store_f32x16(dst + 4 * i, fma(swap_pairs(x), load_f32x16(sin_row + 4 * i), x * load_f32x16(cos_row + 4 * i)))
    for i in range(whole, n, 2):
        a = load_f32(src + 4 * i)
        b = load_f32(src + 4 * i + 4)
        cos = load_f32(cos_row + 4 * i)
        sin = load_f32(sin_row + 4 * i + 4)
        store_f32(dst + 4 * i, a * cos - b * sin)
        store_f32(dst + 4 * i + 4, a * sin + b * cos)


@register_jitable
def copy_f32(src, dst, first, last):
    """Columns first .. last - 1."""
    i = first
    while i + 16 <= last:
        store_f32x16(dst + 4 * i, load_f32x16(src + 4 * i))
        i += 16
    while i < last:
        store_f32(dst + 4 * i, load_f32(src + 4 * i))
        i += 1


@register_jitable
def norm_head(src, dst, n, weight, eps):
    """RMS norm of n columns, times `weight` unless that is 0; `dst` may be `src`."""
    whole = n // 16 * 16
    acc = zero_f32()
    for i in range(0, whole, 16):
        x = load_f32x16(src + 4 * i)
        acc = fma(x, x, acc)
    total = hsum_f32(acc)
    for i in range(whole, n):
        total += load_f32(src + 4 * i) * load_f32(src + 4 * i)
    root = first_lane(sqrt_f32(splat_f32(total / np.float32(n) + np.float32(eps))))
    scale = np.float32(1) / root
    wide = splat_f32(scale)
    for i in range(0, whole, 16):
        x = load_f32x16(src + 4 * i) * wide
        if weight != 0:
            x = x * load_f32x16(weight + 4 * i)
        store_f32x16(dst + 4 * i, x)
    for i in range(whole, n):
        y = load_f32(src + 4 * i) * scale
        if weight != 0:
            y = y * load_f32(weight + 4 * i)
        store_f32(dst + 4 * i, y)


@register_jitable
def turn_head(src, dst, n, weight, eps, cos_row, sin_row, half, interleaved):
    """One head of n columns: norm (unless eps < 0), then rotation of its first 2 * half columns. `dst` may be `src`."""
    if eps >= 0.0:
        norm_head(src, dst, n, weight, eps)
        src = dst
    if half > 0:
        if interleaved:
            rotate_interleaved(src, dst, cos_row, sin_row, half)
        else:
            rotate_pairs(src, dst, cos_row, sin_row, half)
    if src != dst:
        copy_f32(src, dst, 2 * half, n)


def rotate() -> Any:
    """Norm and rotation of a value outside attention. One item is one token."""

    def kernel(args, thread, n_threads):
        a = read_rotate(args)
        n_tokens = load_i64(a.step + 8)
        while True:
            t = atomic_add(a.counter, 1)
            if t >= n_tokens:
                break
            row = a.table + t * a.ld_table
            for h in range(a.n_heads):
                at = 4 * a.head_dim * h
                turn_head(
                    a.x + t * a.ld_x + at, a.y + t * a.ld_y + at, a.head_dim, a.weight + h * a.weight_stride, a.eps,
                    row, row + a.ld_table // 2, a.half, a.interleaved,
                )  # fmt: skip

    return kernel
