"""Second differences of sorted probabilities."""

from __future__ import annotations

import numpy as np
from numba.extending import register_jitable

from pyllm.jit.simd import (
    abs_f32,
    exp_f32,
    first_lane,
    fma,
    hsum_f32,
    load_f32,
    load_f32x16,
    load_f64,
    load_i64,
    select_lt,
    splat_f32,
    store_f64,
    zero_f32,
)
from pyllm.sampling.compiled import slots
from pyllm.sampling.compiled.state import top_of


@register_jitable
def _drop(d):
    """1 - e^-d, exactly where d is small, too."""
    one = splat_f32(np.float32(1))
    series = fma(splat_f32(np.float32(-1 / 24)), d, splat_f32(np.float32(1 / 6)))
    series = d * fma(d, fma(series, d, splat_f32(np.float32(-0.5))), one)
    return select_lt(d, splat_f32(np.float32(0.03125)), series, one - exp_f32(zero_f32() - d))


@register_jitable
def _bends(a, b, c, top):
    """|p(a) - 2 p(b) + p(c)| of logits a >= b >= c, but for a common factor: from their differences, since those of
    probabilities are lost in rounding."""
    weight = exp_f32(a - top)
    first = weight * _drop(a - b)
    return abs_f32(first - (weight - first) * _drop(b - c))


@register_jitable
def _bend(x, i, top):
    at = x + 4 * i
    a, b, c = load_f32(at), load_f32(at + 4), load_f32(at + 8)
    return np.float64(first_lane(_bends(splat_f32(a), splat_f32(b), splat_f32(c), splat_f32(top))))


@register_jitable
def sum_bends(s, n):
    """Sum of the first n bends of the sorted candidates, of which n + 2 can be read; SUMS has those of blocks."""
    x, sums, t, whole = load_i64(s + slots.X), load_i64(s + slots.SUMS), splat_f32(np.float32(top_of(s))), 0.0
    for start in range(0, n, slots.SUM_BLOCK):
        end = min(start + slots.SUM_BLOCK, n)
        full, total = start + (end - start) // 16 * 16, zero_f32()
        for i in range(start, full, 16):
            at = x + 4 * i
            total = total + _bends(load_f32x16(at), load_f32x16(at + 4), load_f32x16(at + 8), t)
        mass = np.float64(hsum_f32(total))
        for i in range(full, end):
            mass += _bend(x, i, np.float32(top_of(s)))
        store_f64(sums + start // slots.SUM_BLOCK * 8, mass)
        whole += mass
    return whole


@register_jitable
def first_beyond(s, n, goal):
    """Number of the first of n bends with which their sum exceeds the goal; n where none does. After `sum_bends`."""
    x, sums, top, so_far, i = load_i64(s + slots.X), load_i64(s + slots.SUMS), np.float32(top_of(s)), 0.0, 0
    while i < n and so_far + load_f64(sums + i // slots.SUM_BLOCK * 8) <= goal:
        so_far += load_f64(sums + i // slots.SUM_BLOCK * 8)
        i += slots.SUM_BLOCK
    while i < n:
        so_far += _bend(x, i, top)
        if so_far > goal:
            break
        i += 1
    return min(i, n)
