"""Sums over the candidates: of weights, which are probabilities but for a factor and 1 for the most likely."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba.extending import register_jitable

from pyllm.jit.simd import (
    exp_f32,
    first_lane,
    fma,
    hsum_f32,
    load_f32,
    load_f32x16,
    load_f64,
    load_i64,
    max_f32,
    select_lt,
    splat_f32,
    store_f64,
    zero_f32,
)
from pyllm.sampling.compiled import slots
from pyllm.sampling.compiled.state import NOTHING, add_within, distances, logit, top_of

_BLOCK = 4096
FAR = np.float32(-88)
"""Where weights are 0."""


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
def weights(v, top):
    return exp_f32(v - top)


@register_jitable
def ones(v, top):
    return splat_f32(np.float32(1))


@register_jitable
def amounts(v, top, counted):
    """What 16 logits are summed as: 1 each where they are counted, else their weights."""
    return ones(v, top) if counted else weights(v, top)


def _summer(amount: Any) -> Callable[..., float]:
    """The function that sums amount(logits, top): that of all of n logits; and out[j], float64 [N_LIMITS], of those
    whose distance is at most limits[j], float32 [N_LIMITS]."""

    @register_jitable
    def run(x, n, top, center, side, limits, out):
        full = n // 16 * 16
        t, c, m, zero = splat_f32(top), splat_f32(center), splat_f32(side), zero_f32()
        l0, l1, l2 = splat_f32(load_f32(limits)), splat_f32(load_f32(limits + 4)), splat_f32(load_f32(limits + 8))
        l3, l4, l5 = (
            splat_f32(load_f32(limits + 12)),
            splat_f32(load_f32(limits + 16)),
            splat_f32(load_f32(limits + 20)),
        )
        total, s0, s1, s2, s3, s4, s5 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        for start in range(0, full, _BLOCK):
            a, a0, a1, a2, a3, a4, a5 = zero, zero, zero, zero, zero, zero, zero
            for i in range(start, min(start + _BLOCK, full), 16):
                v = load_f32x16(x + 4 * i)
                w, d = amount(v, t), distances(v, c, m)
                a = a + w
                a0, a1, a2 = add_within(a0, w, d, l0), add_within(a1, w, d, l1), add_within(a2, w, d, l2)
                a3, a4, a5 = add_within(a3, w, d, l3), add_within(a4, w, d, l4), add_within(a5, w, d, l5)
            total += np.float64(hsum_f32(a))
            s0, s1, s2 = s0 + np.float64(hsum_f32(a0)), s1 + np.float64(hsum_f32(a1)), s2 + np.float64(hsum_f32(a2))
            s3, s4, s5 = s3 + np.float64(hsum_f32(a3)), s4 + np.float64(hsum_f32(a4)), s5 + np.float64(hsum_f32(a5))
        for j, mass in enumerate((s0, s1, s2, s3, s4, s5)):
            store_f64(out + 8 * j, mass)
        for i in range(full, n):
            v = splat_f32(load_f32(x + 4 * i))
            own, far = np.float64(first_lane(amount(v, t))), first_lane(distances(v, c, m))
            total += own
            for j in range(N_LIMITS):
                if far <= load_f32(limits + 4 * j):
                    store_f64(out + 8 * j, load_f64(out + 8 * j) + own)
        return total

    return run


N_LIMITS = 6
sum_weights, sum_ones = _summer(weights), _summer(ones)
