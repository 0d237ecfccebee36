"""Sums over the candidates: of weights, which are probabilities but for a factor and 1 for the most likely."""

from __future__ import annotations

import math

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
    load_i64,
    max_f32,
    select_lt,
    splat_f32,
    store_f32,
    store_f32x16,
    store_f64,
    zero_f32,
)
from pyllm.sampling.compiled import slots
from pyllm.sampling.compiled.state import NOTHING, logit, top_of

_BLOCK = 4096
FAR = np.float32(-88)
"""Where weights are 0."""
DISTANCES = (0.5, 1.0, 2.0, 3.0, 4.5, 6.0, 8.0, 11.0)


@register_jitable
def weight_of(x, top):
    """e^(x - top), float32 as vectors have it."""
    return first_lane(exp_f32(splat_f32(x - top)))


@register_jitable
def sum_exp(x, n, top):
    """Sum of e^(x - top) over n logits, float64."""
    full = n // 32 * 32
    t, total = splat_f32(top), 0.0
    for start in range(0, full, _BLOCK):
        a, b = zero_f32(), zero_f32()
        for i in range(start, min(start + _BLOCK, full), 32):
            a = a + exp_f32(load_f32x16(x + 4 * i) - t)
            b = b + exp_f32(load_f32x16(x + 4 * i + 64) - t)
        total += np.float64(hsum_f32(a + b))
    for i in range(full, n):
        total += np.float64(weight_of(load_f32(x + 4 * i), top))
    return total


@register_jitable
def total_of(s):
    return sum_exp(load_i64(s + slots.X), load_i64(s + slots.N), np.float32(top_of(s)))


@register_jitable
def weighted_distance(x, n, top64):
    """Sums over n logits of the weights w, and of w * (top - x)."""
    top = np.float32(top64)
    full = n // 16 * 16
    t, far, total, below = splat_f32(top), splat_f32(FAR), 0.0, 0.0
    for start in range(0, full, _BLOCK):
        a, b = zero_f32(), zero_f32()
        for i in range(start, min(start + _BLOCK, full), 16):
            d = load_f32x16(x + 4 * i) - t
            w = exp_f32(d)
            a = a + w
            b = fma(w, max_f32(d, far), b)
        total += np.float64(hsum_f32(a))
        below -= np.float64(hsum_f32(b))
    for i in range(full, n):
        d1 = load_f32(x + 4 * i) - top
        w1 = np.float64(first_lane(exp_f32(splat_f32(d1))))
        total += w1
        below -= w1 * np.float64(max(d1, FAR))
    return total, below


@register_jitable
def moments(x, n, top):
    """Of the logits that are not -inf: number, sum and sum of squares of their distance from the largest."""
    full = n // 16 * 16
    t, none, one = splat_f32(top), splat_f32(NOTHING), splat_f32(np.float32(1))
    count, total, squares = 0.0, 0.0, 0.0
    for start in range(0, full, _BLOCK):
        k, a, b = zero_f32(), zero_f32(), zero_f32()
        for i in range(start, min(start + _BLOCK, full), 16):
            v = load_f32x16(x + 4 * i)
            d = select_lt(none, v, t - v, zero_f32())
            k = k + select_lt(none, v, one, zero_f32())
            a = a + d
            b = fma(d, d, b)
        count += np.float64(hsum_f32(k))
        total += np.float64(hsum_f32(a))
        squares += np.float64(hsum_f32(b))
    for i in range(full, n):
        v1 = logit(x, i)
        if v1 > NOTHING:
            d1 = np.float64(top - v1)
            count += 1
            total += d1
            squares += d1 * d1
    return count, total, squares


@register_jitable
def evenness(s):
    """The entropy's share of the largest that so many tokens can have; -1 where there is one token."""
    top = top_of(s)
    x, n = load_i64(s + slots.X), load_i64(s + slots.N)
    total, below = weighted_distance(x, n, top)
    count = moments(x, n, np.float32(top))[0]
    if count < 2:
        return -1.0
    return min(max((below / total + math.log(total)) / math.log(count), 0.0), 1.0)


@register_jitable
def masses(s, x, n, top, center):
    """Sum of the weights, float64; SUMS[j] is that of those at most DISTANCES[j] from the center."""
    full = n // 16 * 16
    t, c = splat_f32(top), splat_f32(center)
    total, m0, m1, m2, m3, m4, m5, m6, m7 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    zero = zero_f32()
    for start in range(0, full, _BLOCK):
        a, a0, a1, a2, a3 = zero, zero, zero, zero, zero
        a4, a5, a6, a7 = zero, zero, zero, zero
        for i in range(start, min(start + _BLOCK, full), 16):
            v = load_f32x16(x + 4 * i)
            w, d = exp_f32(v - t), abs_f32(v - c)
            a = a + w
            a0 = a0 + select_lt(splat_f32(np.float32(DISTANCES[0])), d, zero, w)
            a1 = a1 + select_lt(splat_f32(np.float32(DISTANCES[1])), d, zero, w)
            a2 = a2 + select_lt(splat_f32(np.float32(DISTANCES[2])), d, zero, w)
            a3 = a3 + select_lt(splat_f32(np.float32(DISTANCES[3])), d, zero, w)
            a4 = a4 + select_lt(splat_f32(np.float32(DISTANCES[4])), d, zero, w)
            a5 = a5 + select_lt(splat_f32(np.float32(DISTANCES[5])), d, zero, w)
            a6 = a6 + select_lt(splat_f32(np.float32(DISTANCES[6])), d, zero, w)
            a7 = a7 + select_lt(splat_f32(np.float32(DISTANCES[7])), d, zero, w)
        total += np.float64(hsum_f32(a))
        m0 += np.float64(hsum_f32(a0))
        m1 += np.float64(hsum_f32(a1))
        m2 += np.float64(hsum_f32(a2))
        m3 += np.float64(hsum_f32(a3))
        m4 += np.float64(hsum_f32(a4))
        m5 += np.float64(hsum_f32(a5))
        m6 += np.float64(hsum_f32(a6))
        m7 += np.float64(hsum_f32(a7))
    out = load_i64(s + slots.SUMS)
    for j, m in enumerate((m0, m1, m2, m3, m4, m5, m6, m7)):
        store_f64(out + 8 * j, m)
    return total + sum_exp(x + 4 * full, n - full, top)


@register_jitable
def weigh(s):
    """Fill WEIGHTS with the weights of the candidates."""
    x, n, out = load_i64(s + slots.X), load_i64(s + slots.N), load_i64(s + slots.WEIGHTS)
    top = np.float32(top_of(s))
    full = n // 16 * 16
    for i in range(0, full, 16):
        store_f32x16(out + 4 * i, exp_f32(load_f32x16(x + 4 * i) - splat_f32(top)))
    for i in range(full, n):
        store_f32(out + 4 * i, weight_of(load_f32(x + 4 * i), top))
