"""Columns of two values by head."""

from __future__ import annotations

from collections.abc import Callable

from pyllm.backends.cpu.arguments.select import JoinHeads
from pyllm.backends.cpu.kernels.rope import copy_f32
from pyllm.backends.cpu.kernels.rows import rows_at_once
from pyllm.jit.reader import reader
from pyllm.jit.simd import atomic_add, load_i64

read = reader(JoinHeads)


def join_heads() -> Callable[[int, int, int], None]:
    """Y[t, h] = a[t, h], b[t, h]."""

    def k(args, thread, n_threads):
        a = read(args)
        first, n = load_i64(a.rows), load_i64(a.rows + 8)
        at_once = rows_at_once(n, n_threads)
        while True:
            item = atomic_add(a.counter, at_once)
            if item >= n:
                break
            for t in range(first + item, first + min(item + at_once, n)):
                for h in range(a.n_heads):
                    y = a.y + t * a.ld_y + 4 * h * (a.a_dim + a.b_dim)
                    copy_f32(a.a + t * a.ld_a + 4 * h * a.a_dim, y, 0, a.a_dim)
                    copy_f32(a.b + t * a.ld_b + h * a.b_stride, y + 4 * a.a_dim, 0, a.b_dim)

    return k
