"""Mixture of experts around its matrix products: choose, sort tokens by expert, gather their rows, sum what comes back.

n_used slots a token: slot token * n_used + j is its j-th choice. Sorted by expert (then by token), slots become rows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba.extending import register_jitable

from pyllm.jit.simd import (
    atomic_add,
    exp_f32,
    first_lane,
    fma,
    load_f32,
    load_f32x16,
    load_f64,
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

_LEAST_SUM = 2.0**-14
"""What a sum of weights is at least taken for, as llama.cpp does (the smallest normal half)."""


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


def route(gating: str) -> Callable[[int, int, int], None]:
    """The experts of each token and their weights, best first; of equals the one of the lower number.

    Slots: step, counter, logits, ld in bytes, experts, n_used, chosen (int32 [tokens, n_used]), weights (float32
    likewise), 1 to normalize, factor, choice bias or 0, range, scratch (8 bytes an expert), bytes of scratch of a
    thread.
    """
    over_all, sigmoid = gating == "softmax", gating == "sigmoid"

    def k(args, thread, n_threads):
        counter = load_i64(args + 8)
        logits, ld = load_i64(args + 16), load_i64(args + 24)
        n_experts, n_used = load_i64(args + 32), load_i64(args + 40)
        all_chosen, all_weights = load_i64(args + 48), load_i64(args + 56)
        normalize = load_i64(args + 64)
        factor = np.float32(load_f64(args + 72))
        bias, rows = load_i64(args + 80), load_i64(args + 88)
        scores = load_i64(args + 96) + thread * load_i64(args + 104)
        order = scores + 4 * n_experts
        first, n = load_i64(rows), load_i64(rows + 8)
        while True:
            i = atomic_add(counter, 1)
            if i >= n:
                break
            row = logits + (first + i) * ld
            chosen, weights = all_chosen + (first + i) * n_used * 4, all_weights + (first + i) * n_used * 4
            for e in range(n_experts):
                v = load_f32(row + 4 * e)
                store_f32(scores + 4 * e, _sigmoid(v) if sigmoid else v)
            if over_all:
                _softmax(scores, n_experts)
            for e in range(n_experts):
                b = load_f32(bias + 4 * e) if bias != 0 else np.float32(0)
                store_f32(order + 4 * e, load_f32(scores + 4 * e) + b)
            for j in range(n_used):
                best = 0
                for e in range(1, n_experts):
                    if load_f32(order + 4 * e) > load_f32(order + 4 * best):
                        best = e
                store_f32(order + 4 * best, np.float32(-np.inf))
                store_i32(chosen + 4 * j, best)
                store_f32(weights + 4 * j, load_f32(scores + 4 * best))
            if not over_all and not sigmoid:
                _softmax(weights, n_used)
            scale = factor
            if normalize != 0:
                total = np.float32(0)
                for j in range(n_used):
                    total += load_f32(weights + 4 * j)
                scale = factor / max(total, np.float32(_LEAST_SUM))
            for j in range(n_used):
                store_f32(weights + 4 * j, load_f32(weights + 4 * j) * scale)

    return k


def sort() -> Callable[[int, int, int], None]:
    """Slots by expert; a few thousand, so one thread does it.

    Slots: step, counter, chosen, n_used, experts, ranges (int64 pairs first, count of each expert; then one for all
    rows), slot of each row (int32), row of each slot (int32), range of tokens.
    """

    def k(args, thread, n_threads):
        if atomic_add(load_i64(args + 8), 1) != 0:
            return
        chosen, n_used, n_experts = load_i64(args + 16), load_i64(args + 24), load_i64(args + 32)
        ranges, slot_of, row_of = load_i64(args + 40), load_i64(args + 48), load_i64(args + 56)
        n = load_i64(load_i64(args + 64) + 8) * n_used
        for e in range(n_experts):
            store_i64(ranges + 16 * e + 8, 0)
        for s in range(n):
            at = ranges + 16 * load_i32(chosen + 4 * s) + 8
            store_i64(at, load_i64(at) + 1)
        start = 0
        for e in range(n_experts):
            store_i64(ranges + 16 * e, start)
            start += load_i64(ranges + 16 * e + 8)
        store_i64(ranges + 16 * n_experts, 0)
        store_i64(ranges + 16 * n_experts + 8, n)
        for s in range(n):
            at = ranges + 16 * load_i32(chosen + 4 * s)
            row = load_i64(at)
            store_i64(at, row + 1)
            store_i32(slot_of + 4 * row, s)
            store_i32(row_of + 4 * s, row)
        for e in range(n_experts):
            store_i64(ranges + 16 * e, load_i64(ranges + 16 * e) - load_i64(ranges + 16 * e + 8))

    return k


def gather() -> Callable[[int, int, int], None]:
    """Each row's input: a copy of its token's record or numbers.

    Slots: step, counter, X, ldx, out, ld, n_used, slot of each row, range of all rows. ld in bytes, that of out a
    multiple of 64.
    """

    def k(args, thread, n_threads):
        counter = load_i64(args + 8)
        x, ldx = load_i64(args + 16), load_i64(args + 24)
        out, ld = load_i64(args + 32), load_i64(args + 40)
        n_used, slot_of = load_i64(args + 48), load_i64(args + 56)
        n = load_i64(load_i64(args + 64) + 8)
        while True:
            row = atomic_add(counter, 1)
            if row >= n:
                break
            src = x + load_i32(slot_of + 4 * row) // n_used * ldx
            for i in range(0, ld, 64):
                store_i8x64(out + row * ld + i, load_i8x64(src + i))

    return k


def adjust() -> Callable[[int, int, int], None]:
    """X[row] = X[row] * scale[expert] + bias[expert], in place, for files that scale their experts.

    Slots: step, counter, X, ldx, scales (float32), biases or 0, bytes of an expert's biases, chosen, slot of each
    row, columns, range of all rows.
    """

    def k(args, thread, n_threads):
        counter = load_i64(args + 8)
        x, ldx = load_i64(args + 16), load_i64(args + 24)
        scales, biases, bias_bytes = load_i64(args + 32), load_i64(args + 40), load_i64(args + 48)
        chosen, slot_of = load_i64(args + 56), load_i64(args + 64)
        columns, n = load_i64(args + 72), load_i64(load_i64(args + 80) + 8)
        while True:
            row = atomic_add(counter, 1)
            if row >= n:
                break
            e = load_i32(chosen + 4 * load_i32(slot_of + 4 * row))
            scale = splat_f32(load_f32(scales + 4 * e))
            for c in range(0, columns, 16):
                bias = load_f32x16(biases + e * bias_bytes + 4 * c) if biases != 0 else zero_f32()
                at = x + row * ldx + 4 * c
                store_f32x16(at, fma(load_f32x16(at), scale, bias))

    return k


def combine() -> Callable[[int, int, int], None]:
    """Y[t] = residual[t] + sum over j of weight[t, j] * rows[row of slot (t, j)], in the order of the choices.

    Slots: step, counter, rows, ld of rows, Y, ldy, residual or 0, ld of it, weights, n_used, row of each slot,
    columns, range.
    """

    def k(args, thread, n_threads):
        counter = load_i64(args + 8)
        x, ldx = load_i64(args + 16), load_i64(args + 24)
        y, ldy = load_i64(args + 32), load_i64(args + 40)
        residual, ldr = load_i64(args + 48), load_i64(args + 56)
        weights, n_used, row_of = load_i64(args + 64), load_i64(args + 72), load_i64(args + 80)
        columns, rows = load_i64(args + 88), load_i64(args + 96)
        first, n = load_i64(rows), load_i64(rows + 8)
        while True:
            i = atomic_add(counter, 1)
            if i >= n:
                break
            t = first + i
            for c in range(0, columns, 16):
                total = load_f32x16(residual + t * ldr + 4 * c) if residual != 0 else zero_f32()
                for j in range(t * n_used, (t + 1) * n_used):
                    w = splat_f32(load_f32(weights + 4 * j))
                    total = fma(load_f32x16(x + load_i32(row_of + 4 * j) * ldx + 4 * c), w, total)
                store_f32x16(y + t * ldy + 4 * c, total)

    return k
