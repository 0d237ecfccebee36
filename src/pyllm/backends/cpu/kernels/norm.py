"""Norms of rows, or of each head of a row, fused with the sum before and the quantization after."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba.extending import register_jitable

from pyllm.backends.cpu.arguments.norm import Norm
from pyllm.backends.cpu.kernels.activation import store_activation
from pyllm.backends.cpu.kernels.rows import row_of, rows_at_once
from pyllm.jit.reader import reader
from pyllm.jit.simd import (
    atomic_add,
    fma,
    hsum_f32,
    load_f32,
    load_f32x16,
    load_i64,
    splat_f32,
    store_f32,
    store_f32x16,
    zero_f32,
)

read = reader(Norm)


@register_jitable
def _add_rows(a, b, out, n):
    """out = a + b, including the padding to 16 columns."""
    for c in range(0, n, 16):
        store_f32x16(out + 4 * c, load_f32x16(a + 4 * c) + load_f32x16(b + 4 * c))


@register_jitable
def _normalize(x, y, weight, eps, n):
    """y = x / sqrt(mean(x^2) + eps) * weight over n columns; weight 0: none. x and y may be the same."""
    full = n // 16 * 16
    s0 = zero_f32()
    s1 = zero_f32()
    c = 0
    while c + 32 <= full:
        v = load_f32x16(x + 4 * c)
        w = load_f32x16(x + 4 * c + 64)
        s0 = fma(v, v, s0)
        s1 = fma(w, w, s1)
        c += 32
    if c < full:
        v = load_f32x16(x + 4 * c)
        s0 = fma(v, v, s0)
    total = hsum_f32(s0 + s1)
    for i in range(full, n):
        total += load_f32(x + 4 * i) * load_f32(x + 4 * i)
    factor = np.float32(1) / np.sqrt(total / np.float32(n) + eps)
    f = splat_f32(factor)
    if weight != 0:
        for i in range(0, full, 16):
            store_f32x16(y + 4 * i, load_f32x16(x + 4 * i) * f * load_f32x16(weight + 4 * i))
        for i in range(full, n):
            store_f32(y + 4 * i, load_f32(x + 4 * i) * factor * load_f32(weight + 4 * i))
    else:
        for i in range(0, full, 16):
            store_f32x16(y + 4 * i, load_f32x16(x + 4 * i) * f)
        for i in range(full, n):
            store_f32(y + 4 * i, load_f32(x + 4 * i) * factor)


@register_jitable
def _add_bias(y, bias, n):
    """y += bias, n columns."""
    full = n // 16 * 16
    for i in range(0, full, 16):
        store_f32x16(y + 4 * i, load_f32x16(y + 4 * i) + load_f32x16(bias + 4 * i))
    for i in range(full, n):
        store_f32(y + 4 * i, load_f32(y + 4 * i) + load_f32(bias + 4 * i))


@register_jitable
def _normalize_centred(x, y, weight, bias, eps, n):
    """y = (x - mean) / sqrt(mean((x - mean)^2) + eps) * weight + bias over n columns; weight 0, bias 0: none."""
    full = n // 16 * 16
    s = zero_f32()
    for i in range(0, full, 16):
        s = s + load_f32x16(x + 4 * i)
    total = hsum_f32(s)
    for i in range(full, n):
        total += load_f32(x + 4 * i)
    mean = total / np.float32(n)
    m = splat_f32(mean)
    s = zero_f32()
    for i in range(0, full, 16):
        d = load_f32x16(x + 4 * i) - m
        s = fma(d, d, s)
    total = hsum_f32(s)
    for i in range(full, n):
        total += (load_f32(x + 4 * i) - mean) * (load_f32(x + 4 * i) - mean)
    factor = np.float32(1) / np.sqrt(total / np.float32(n) + eps)
    f = splat_f32(factor)
    for i in range(0, full, 16):
        v = (load_f32x16(x + 4 * i) - m) * f
        if weight != 0:
            v = v * load_f32x16(weight + 4 * i)
        if bias != 0:
            v = v + load_f32x16(bias + 4 * i)
        store_f32x16(y + 4 * i, v)
    for i in range(full, n):
        e = (load_f32(x + 4 * i) - mean) * factor
        if weight != 0:
            e = e * load_f32(weight + 4 * i)
        if bias != 0:
            e = e + load_f32(bias + 4 * i)
        store_f32(y + 4 * i, e)


def norm(centred: int) -> Callable[[int, int, int], None]:
    """h = x + b (if b), y = norm(h), quantized y. `centred`: the mean is subtracted."""

    def k(args, thread, n_threads):
        a = read(args)
        eps = np.float32(a.eps)
        scratch = a.scratch + thread * a.ld_scratch
        wide_from = load_i64(a.wide_from)
        first, n = load_i64(a.rows), load_i64(a.rows + 8)
        at_once = rows_at_once(n, n_threads)
        while True:
            item = atomic_add(a.counter, at_once)
            if item >= n:
                break
            for t in range(first + item, first + min(item + at_once, n)):
                s = row_of(a.step, t, a.selects_rows)
                row = a.x + s * a.ld_x
                out = a.y + t * a.ld_y if a.y != 0 else scratch
                if a.b != 0:
                    total = a.h + t * a.ld_h if a.h != 0 else out
                    _add_rows(row, a.b + s * a.ld_b, total, a.group * a.n_groups)
                    row = total
                for g in range(a.n_groups):
                    at, w, bias = 4 * g * a.group, a.weight + 4 * g * a.weight_step, a.bias + 4 * g * a.bias_step
                    if centred:
                        _normalize_centred(row + at, out + at, w, bias, eps, a.group)
                    else:
                        _normalize(row + at, out + at, w, eps, a.group)
                        if bias != 0:
                            _add_bias(out + at, bias, a.group)
                if a.records != 0:
                    record = a.records + t * a.ld_records
                    store_activation(out, record, a.group * a.n_groups, 1 if t >= wide_from else 0)

    return k
