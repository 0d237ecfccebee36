"""Factors by position."""

from __future__ import annotations

from collections.abc import Callable

from pyllm.backends.cpu.arguments.position import Scale
from pyllm.jit.reader import reader
from pyllm.jit.simd import atomic_add, load_f32, load_f32x16, load_i32, load_i64, splat_f32, store_f32x16

read = reader(Scale)


def scale() -> Callable[[int, int, int], None]:
    """Y[t] = X[t] * factors[min((positions[t] + offset) // length, n_factors - 1)]."""

    def k(args, thread, n_threads):
        a = read(args)
        positions, n = load_i64(a.step + 48), load_i64(a.step + 8)
        while True:
            t = atomic_add(a.counter, 1)
            if t >= n:
                break
            which = min((load_i32(positions + 4 * t) + a.offset) // a.length, a.n_factors - 1)
            factor = splat_f32(load_f32(a.factors + 4 * which))
            for c in range(0, a.columns, 16):
                store_f32x16(a.y + t * a.ld_y + 4 * c, load_f32x16(a.x + t * a.ld_x + 4 * c) * factor)

    return k
