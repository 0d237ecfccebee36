"""Sums of streams: parts of a row, as wide as each other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba.extending import register_jitable

from pyllm.backends.cpu.arguments.streams import Mix
from pyllm.backends.cpu.kernels.rows import rows_at_once
from pyllm.jit.reader import reader
from pyllm.jit.simd import (
    atomic_add,
    fma,
    load_f32,
    load_f32x16,
    load_i64,
    splat_f32,
    store_f32,
    store_f32x16,
    zero_f32,
)

read = reader(Mix)


@register_jitable
def _coefficients(coefs, weight, out, n):
    """The sum of both, where they are there."""
    for i in range(n):
        c = np.float32(0)
        if coefs != 0:
            c += load_f32(coefs + 4 * i)
        if weight != 0:
            c += load_f32(weight + 4 * i)
        store_f32(out + 4 * i, c)


@register_jitable
def _sum(coefs, x, n_first, x2, n_second, step, y, n):
    """One stream of n columns; those that are read lie `step` bytes apart."""
    full = n // 16 * 16
    for c in range(0, 4 * full, 64):
        total = zero_f32()
        for i in range(n_first):
            total = fma(splat_f32(load_f32(coefs + 4 * i)), load_f32x16(x + i * step + c), total)
        for i in range(n_second):
            total = fma(splat_f32(load_f32(coefs + 4 * (n_first + i))), load_f32x16(x2 + i * step + c), total)
        store_f32x16(y + c, total)
    for c in range(4 * full, 4 * n, 4):
        rest = np.float32(0)
        for i in range(n_first):
            rest += load_f32(coefs + 4 * i) * load_f32(x + i * step + c)
        for i in range(n_second):
            rest += load_f32(coefs + 4 * (n_first + i)) * load_f32(x2 + i * step + c)
        store_f32(y + c, rest)


def mix() -> Callable[[int, int, int], None]:
    """y's stream j = sum over i of (coefs[t, j, i] + weight[j, i]) * stream i."""

    def k(args, thread, n_threads):
        a = read(args)
        own = a.scratch + thread * a.ld_scratch
        n_in, step = a.n_first + a.n_second, 4 * a.width
        first, n = load_i64(a.rows), load_i64(a.rows + 8)
        at_once = rows_at_once(n, n_threads)
        while True:
            item = atomic_add(a.counter, at_once)
            if item >= n:
                break
            for t in range(first + item, first + min(item + at_once, n)):
                coefs = a.coefs + t * a.ld_coefs if a.coefs != 0 else 0
                _coefficients(coefs, a.weight, own, a.n_out * n_in)
                x, x2, y = a.x + t * a.ld_x, a.x2 + t * a.ld_x2, a.y + t * a.ld_y
                for j in range(a.n_out):
                    _sum(own + 4 * j * n_in, x, a.n_first, x2, a.n_second, step, y + j * step, a.width)

    return k
