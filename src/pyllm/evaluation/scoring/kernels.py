"""Rows of logits, a row at a time: sums of exponentials, coded distributions, and divergences from such."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import register_jitable

from pyllm.jit.simd import (
    atomic_add,
    exp_f32,
    first_lane,
    fma,
    hmax_f32,
    hsum_f32,
    load_f32,
    load_f32x16,
    load_f64,
    load_i32,
    load_i64,
    load_u16,
    max_f32,
    min_f32,
    round_to_i32,
    select_lt,
    splat_f32,
    store_f64,
    store_i16,
    zero_f32,
)
from pyllm.jit.simd.core import F32X16, I32X16, VI16, VI32, op

STATISTICS = 6
"""Numbers that `describe` finds in a row: largest and smallest logit, sum of exp(logit - largest), the target's logit,
the number of the largest logit, and the sum of logit - logit, which is 0 unless some are no numbers."""

_BLOCK = 1024
"""Columns that are summed in float32; the sums of blocks are added in float64."""


@op(types.void, I32X16, types.int64)
def _store_u16x16(b: Any, a: Any) -> Any:
    b.store(b.trunc(a[0], VI16), b.inttoptr(a[1], VI16.as_pointer())).align = 1


@op(F32X16, types.int64)
def _load_u16x16(b: Any, a: Any) -> Any:
    """16 unsigned integers as float32."""
    values = b.load(b.inttoptr(a[0], VI16.as_pointer()))
    values.align = 1
    return b.sitofp(b.zext(values, VI32), ir.VectorType(ir.FloatType(), 16))


@register_jitable
def _extremes(row, n):
    """(largest, smallest, sum of x - x) of n columns."""
    full = n // 16 * 16
    high, low, odd = splat_f32(load_f32(row)), splat_f32(load_f32(row)), zero_f32()
    for c in range(0, full, 16):
        x = load_f32x16(row + 4 * c)
        high, low, odd = max_f32(high, x), min_f32(low, x), odd + (x - x)
    largest, smallest, strange = hmax_f32(high), -hmax_f32(zero_f32() - low), hsum_f32(odd)
    for c in range(full, n):
        x = load_f32(row + 4 * c)
        largest, smallest, strange = max(largest, x), min(smallest, x), strange + (x - x)
    return largest, smallest, strange


@register_jitable
def _sum_exp(row, n, largest):
    top = splat_f32(largest)
    full = n // 16 * 16
    total = 0.0
    for start in range(0, full, _BLOCK):
        s = zero_f32()
        for c in range(start, min(start + _BLOCK, full), 16):
            s = s + exp_f32(load_f32x16(row + 4 * c) - top)
        total += np.float64(hsum_f32(s))
    for c in range(full, n):
        total += np.float64(first_lane(exp_f32(splat_f32(load_f32(row + 4 * c) - largest))))
    return total


@register_jitable
def _first_f32(row, n, value):
    """The first column that holds `value`; n if none does."""
    c = 0
    while c + 16 <= n and hmax_f32(load_f32x16(row + 4 * c)) < value:
        c += 16
    while c < n and load_f32(row + 4 * c) != value:
        c += 1
    return c


@register_jitable
def _code(row, codes, n, low, inverse):
    """Each logit above `low` in steps of 1 / inverse, to the nearest; 0 below."""
    full = n // 16 * 16
    base, factor, zero = splat_f32(low), splat_f32(inverse), zero_f32()
    for c in range(0, full, 16):
        steps = max_f32((load_f32x16(row + 4 * c) - base) * factor, zero)
        _store_u16x16(round_to_i32(steps), codes + 2 * c)
    for c in range(full, n):
        steps = max((load_f32(row + 4 * c) - low) * inverse, np.float32(0))
        store_i16(codes + 2 * c, np.int64(np.rint(steps)))


def describe() -> Callable[[int, int, int], None]:
    """What there is to know of each row, and its coded distribution.

    Slots: step, counter, logits, bytes between rows, rows, columns, targets (int32 [rows]), statistics (float64
    [rows, STATISTICS]), codes or 0 (uint16), bytes between rows of codes. Codes span the 16 below the largest logit, or
    less where the smallest is nearer, in 65535 steps.
    """

    def k(args, thread, n_threads):
        counter = load_i64(args + 8)
        logits, ld = load_i64(args + 16), load_i64(args + 24)
        n, columns = load_i64(args + 32), load_i64(args + 40)
        targets, statistics = load_i64(args + 48), load_i64(args + 56)
        codes, ld_codes = load_i64(args + 64), load_i64(args + 72)
        while True:
            i = atomic_add(counter, 1)
            if i >= n:
                break
            row = logits + i * ld
            largest, smallest, strange = _extremes(row, columns)
            out = statistics + 8 * STATISTICS * i
            store_f64(out, np.float64(largest))
            store_f64(out + 8, np.float64(smallest))
            store_f64(out + 16, _sum_exp(row, columns, largest))
            store_f64(out + 24, np.float64(load_f32(row + 4 * load_i32(targets + 4 * i))))
            store_f64(out + 32, np.float64(_first_f32(row, columns, largest)))
            store_f64(out + 40, np.float64(strange))
            if codes != 0:
                low = max(smallest, largest - np.float32(16))
                scale = (largest - low) / np.float32(65535)
                inverse = np.float32(1) / scale if scale > np.float32(0) else np.float32(0)
                _code(row, codes + i * ld_codes, columns, low, inverse)

    return k


@register_jitable
def _first_code(codes, n):
    """The first column of the largest code."""
    full = n // 16 * 16
    high = zero_f32() - splat_f32(np.float32(1))
    for c in range(0, full, 16):
        high = max_f32(high, _load_u16x16(codes + 2 * c))
    largest = hmax_f32(high)
    for c in range(full, n):
        largest = max(largest, np.float32(load_u16(codes + 2 * c)))
    c = 0
    while c + 16 <= full and hmax_f32(_load_u16x16(codes + 2 * c)) < largest:
        c += 16
    while c < n and np.float32(load_u16(codes + 2 * c)) != largest:
        c += 1
    return c


@register_jitable
def _divergence(row, codes, n, log_sum, scale, least):
    """Sum of p (log p - log q): log p = scale * code + least, log q = logit - log_sum; p below e^-16 is left out."""
    full = n // 16 * 16
    factor, base, shift, limit = splat_f32(scale), splat_f32(least), splat_f32(log_sum), splat_f32(np.float32(-16))
    total = 0.0
    for start in range(0, full, _BLOCK):
        s = zero_f32()
        for c in range(start, min(start + _BLOCK, full), 16):
            log_p = factor * _load_u16x16(codes + 2 * c) + base
            p = select_lt(limit, log_p, exp_f32(log_p), zero_f32())
            s = fma(p, log_p - load_f32x16(row + 4 * c) + shift, s)
        total += np.float64(hsum_f32(s))
    for c in range(full, n):
        log_p1 = scale * np.float32(load_u16(codes + 2 * c)) + least
        if log_p1 > np.float32(-16):
            p1 = first_lane(exp_f32(splat_f32(log_p1)))
            total += np.float64(p1 * (log_p1 - load_f32(row + 4 * c) + log_sum))
    return total


def compare() -> Callable[[int, int, int], None]:
    """How far rows are from coded distributions.

    Slots: step, counter, logits, bytes between rows, rows, columns, codes, bytes between rows of codes, parameters
    (float64 [rows, 3]: log of the row's sum of exponentials, scale and smallest log-probability of its codes), results
    (float64 [rows, 2]: divergence, first column of the largest code).
    """

    def k(args, thread, n_threads):
        counter = load_i64(args + 8)
        logits, ld = load_i64(args + 16), load_i64(args + 24)
        n, columns = load_i64(args + 32), load_i64(args + 40)
        codes, ld_codes = load_i64(args + 48), load_i64(args + 56)
        parameters, results = load_i64(args + 64), load_i64(args + 72)
        while True:
            i = atomic_add(counter, 1)
            if i >= n:
                break
            own = codes + i * ld_codes
            p = parameters + 24 * i
            log_sum, scale = np.float32(load_f64(p)), np.float32(load_f64(p + 8))
            d = _divergence(logits + i * ld, own, columns, log_sum, scale, np.float32(load_f64(p + 16)))
            store_f64(results + 16 * i, d)
            store_f64(results + 16 * i + 8, np.float64(_first_code(own, columns)))

    return k
