"""Scalar products over groups of columns."""

from __future__ import annotations

from collections.abc import Callable

from numba.extending import register_jitable

from pyllm.backends.cpu.arguments.dot import Dot
from pyllm.backends.cpu.kernels.rows import rows_at_once
from pyllm.jit.reader import reader
from pyllm.jit.simd import atomic_add, fma, hsum_f32, load_f32, load_f32x16, load_i64, store_f32, zero_f32

read = reader(Dot)


@register_jitable
def _product(a, b, n):
    """Sum of a * b over n columns."""
    full = n // 16 * 16
    s = zero_f32()
    for c in range(0, full, 16):
        s = fma(load_f32x16(a + 4 * c), load_f32x16(b + 4 * c), s)
    total = hsum_f32(s)
    for c in range(full, n):
        total += load_f32(a + 4 * c) * load_f32(b + 4 * c)
    return total


def dot() -> Callable[[int, int, int], None]:
    """y[g] = sum of a * b over the columns of a group."""

    def k(args, thread, n_threads):
        a = read(args)
        first, n = load_i64(a.rows), load_i64(a.rows + 8)
        at_once = rows_at_once(n, n_threads)
        while True:
            item = atomic_add(a.counter, at_once)
            if item >= n:
                break
            for t in range(first + item, first + min(item + at_once, n)):
                for g in range(a.n_groups):
                    at = 4 * g * a.group
                    product = _product(a.a + t * a.ld_a + at, a.b + t * a.ld_b + at, a.group)
                    store_f32(a.y + t * a.ld_y + 4 * g, product)

    return k
