"""Mixture of experts around its matrix products: routing, sorting tokens by expert, gathering rows, and the weighted
sum.

n_used slots per token: slot token * n_used + j is its j-th choice. Sorted by expert (then by token), slots become rows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba.extending import register_jitable

from pyllm.backends.cpu.arguments.experts import Adjust, Combine, Gather, Route, Sort, Weigh
from pyllm.jit.reader import reader
from pyllm.jit.simd import (
    atomic_add,
    exp_f32,
    first_lane,
    fma,
    load_f32,
    load_f32x16,
    load_i8x64,
    load_i32,
    load_i64,
    sigmoid_f32,
    splat_f32,
    store_f32,
    store_f32x16,
    store_i8x64,
    store_i32,
    store_i64,
    zero_f32,
)

read_route = reader(Route)
read_sort = reader(Sort)
read_gather = reader(Gather)
read_adjust = reader(Adjust)
read_combine = reader(Combine)
read_weigh = reader(Weigh)

_LEAST_SUM = 2.0**-14
"""Lower bound of a sum of weights, as in llama.cpp (the smallest normal float16)."""


@register_jitable
def _exp(x):
    return first_lane(exp_f32(splat_f32(x)))


@register_jitable
def _sigmoid(x):
    return first_lane(sigmoid_f32(splat_f32(x)))


@register_jitable
def _softmax(p, n):
    """In place, over n scalars."""
    top = load_f32(p)
    for e in range(1, n):
        top = max(top, load_f32(p + 4 * e))
    total = np.float32(0)
    for e in range(n):
        v = _exp(load_f32(p + 4 * e) - top)
        store_f32(p + 4 * e, v)
        total += v
    for e in range(n):
        store_f32(p + 4 * e, load_f32(p + 4 * e) / total)


@register_jitable
def _keep_groups(order, n_experts, sums, n_groups, n_used):
    """-inf in place of the scores of experts outside the n_used groups whose two largest have the largest sums."""
    size = n_experts // n_groups
    for g in range(n_groups):
        first, second = np.float32(-np.inf), np.float32(-np.inf)
        for e in range(g * size, (g + 1) * size):
            v = load_f32(order + 4 * e)
            if v > first:
                first, second = v, first
            elif v > second:
                second = v
        store_f32(sums + 4 * g, second + first)
    for g in range(n_groups):
        own, better = load_f32(sums + 4 * g), 0
        for h in range(n_groups):
            v = load_f32(sums + 4 * h)
            if v > own or (v == own and h < g):
                better += 1
        if better >= n_used:
            for e in range(g * size, (g + 1) * size):
                store_f32(order + 4 * e, np.float32(-np.inf))


def route(gating: str) -> Callable[[int, int, int], None]:
    """The experts of each token and their weights, best first; of equals the one of the lower number."""
    over_all, sigmoid = gating == "softmax", gating == "sigmoid"

    def k(args, thread, n_threads):
        a = read_route(args)
        factor = np.float32(a.factor)
        scores = a.scratch + thread * a.ld_scratch
        order = scores + 4 * a.n_experts
        first, n = load_i64(a.rows), load_i64(a.rows + 8)
        while True:
            i = atomic_add(a.counter, 1)
            if i >= n:
                break
            row = a.logits + (first + i) * a.ld_logits
            chosen, weights = a.chosen + (first + i) * a.n_used * 4, a.weights + (first + i) * a.n_used * 4
            for e in range(a.n_experts):
                v = load_f32(row + 4 * e)
                store_f32(scores + 4 * e, _sigmoid(v) if sigmoid else v)
            if over_all:
                _softmax(scores, a.n_experts)
            for e in range(a.n_experts):
                b = load_f32(a.bias + 4 * e) if a.bias != 0 else np.float32(0)
                store_f32(order + 4 * e, load_f32(scores + 4 * e) + b)
            if a.n_groups != 0:
                _keep_groups(order, a.n_experts, order + 4 * a.n_experts, a.n_groups, a.n_groups_used)
            for j in range(a.n_used):
                best = 0
                for e in range(1, a.n_experts):
                    if load_f32(order + 4 * e) > load_f32(order + 4 * best):
                        best = e
                store_f32(order + 4 * best, np.float32(-np.inf))
                store_i32(chosen + 4 * j, best // a.sharing)
                store_f32(weights + 4 * j, load_f32(scores + 4 * (best // a.sharing)))
            if not over_all and not sigmoid:
                _softmax(weights, a.n_used)
            scale = factor
            if a.normalize != 0:
                total = np.float32(0)
                for j in range(a.n_used):
                    total += load_f32(weights + 4 * j)
                scale = factor / max(total, np.float32(_LEAST_SUM))
            for j in range(a.n_used):
                store_f32(weights + 4 * j, load_f32(weights + 4 * j) * scale)

    return k


def sort() -> Callable[[int, int, int], None]:
    """Slots by expert; a few thousand, so one thread does it."""

    def k(args, thread, n_threads):
        a = read_sort(args)
        if atomic_add(a.counter, 1) != 0:
            return
        n = load_i64(a.rows + 8) * a.n_used
        for e in range(a.n_experts):
            store_i64(a.ranges + 16 * e + 8, 0)
        for s in range(n):
            at = a.ranges + 16 * load_i32(a.chosen + 4 * s) + 8
            store_i64(at, load_i64(at) + 1)
        start = 0
        for e in range(a.n_experts):
            store_i64(a.ranges + 16 * e, start)
            start += load_i64(a.ranges + 16 * e + 8)
        store_i64(a.ranges + 16 * a.n_experts, 0)
        store_i64(a.ranges + 16 * a.n_experts + 8, n)
        for s in range(n):
            at = a.ranges + 16 * load_i32(a.chosen + 4 * s)
            row = load_i64(at)
            store_i64(at, row + 1)
            store_i32(a.slot_of + 4 * row, s)
            store_i32(a.row_of + 4 * s, row)
        for e in range(a.n_experts):
            store_i64(a.ranges + 16 * e, load_i64(a.ranges + 16 * e) - load_i64(a.ranges + 16 * e + 8))

    return k


def gather() -> Callable[[int, int, int], None]:
    """Each row's input: a copy of its token's record or values."""

    def k(args, thread, n_threads):
        a = read_gather(args)
        n = load_i64(a.rows + 8)
        while True:
            row = atomic_add(a.counter, 1)
            if row >= n:
                break
            src = a.x + load_i32(a.slot_of + 4 * row) // a.n_used * a.ld_x
            for i in range(0, a.ld_y, 64):
                store_i8x64(a.y + row * a.ld_y + i, load_i8x64(src + i))

    return k


def adjust() -> Callable[[int, int, int], None]:
    """X[row] = X[row] * scale[expert] + bias[expert], in place, for files that scale their experts."""

    def k(args, thread, n_threads):
        a = read_adjust(args)
        n = load_i64(a.rows + 8)
        while True:
            row = atomic_add(a.counter, 1)
            if row >= n:
                break
            e = load_i32(a.chosen + 4 * load_i32(a.slot_of + 4 * row))
            scale = splat_f32(load_f32(a.scales + 4 * e))
            for c in range(0, a.columns, 16):
                bias = load_f32x16(a.biases + e * a.bias_stride + 4 * c) if a.biases != 0 else zero_f32()
                at = a.x + row * a.ld_x + 4 * c
                store_f32x16(at, fma(load_f32x16(at), scale, bias))

    return k


def weigh() -> Callable[[int, int, int], None]:
    """X[row] = X[row] * weight[slot], in place: what an expert gets is weighed, not what it gives."""

    def k(args, thread, n_threads):
        a = read_weigh(args)
        n = load_i64(a.rows + 8)
        while True:
            row = atomic_add(a.counter, 1)
            if row >= n:
                break
            weight = splat_f32(load_f32(a.weights + 4 * load_i32(a.slot_of + 4 * row)))
            for c in range(0, a.columns, 16):
                at = a.x + row * a.ld_x + 4 * c
                store_f32x16(at, load_f32x16(at) * weight)

    return k


def combine() -> Callable[[int, int, int], None]:
    """Y[t] = residual[t] + sum over j of weight[t, j] * rows[row of slot (t, j)], in the order of the choices."""

    def k(args, thread, n_threads):
        a = read_combine(args)
        first, n = load_i64(a.rows), load_i64(a.rows + 8)
        while True:
            i = atomic_add(a.counter, 1)
            if i >= n:
                break
            t = first + i
            for c in range(0, a.columns, 16):
                total = load_f32x16(a.residual + t * a.ld_residual + 4 * c) if a.residual != 0 else zero_f32()
                for j in range(t * a.n_used, (t + 1) * a.n_used):
                    w = splat_f32(load_f32(a.weights + 4 * j) if a.weights != 0 else np.float32(1))
                    total = fma(load_f32x16(a.x + load_i32(a.row_of + 4 * j) * a.ld_x + 4 * c), w, total)
                store_f32x16(a.y + t * a.ld_y + 4 * c, total)

    return k
