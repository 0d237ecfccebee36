"""Sums of squares of a step's activations, column by column."""

from __future__ import annotations

from collections.abc import Callable

from numba.extending import register_jitable

from pyllm.backends.cpu.arguments.statistics import SumSquares
from pyllm.jit.reader import reader
from pyllm.jit.simd import atomic_add, fma, load_f32x16, load_i64, store_f32x16, store_i64, zero_f32

read = reader(SumSquares)

_BLOCK = 32
"""Rows summed plainly; sums of blocks are added with compensation."""
_WIDTH = 64
"""Columns of a work item: four vectors."""


@register_jitable
def _add_to(at, errors, value):
    """Add a value to the sum at `at`; rounding errors are accumulated at `errors` (Knuth's two-sum)."""
    old = load_f32x16(at)
    new = old + value
    kept = new - old
    lost = (old - (new - kept)) + (value - kept)
    store_f32x16(at, new)
    store_f32x16(errors, load_f32x16(errors) + lost)


@register_jitable
def _columns64(x, ldx, first, n, out, errors):
    for start in range(first, first + n, _BLOCK):
        s0, s1, s2, s3 = zero_f32(), zero_f32(), zero_f32(), zero_f32()
        for t in range(start, min(start + _BLOCK, first + n)):
            row = x + t * ldx
            a, b = load_f32x16(row), load_f32x16(row + 64)
            c, d = load_f32x16(row + 128), load_f32x16(row + 192)
            s0, s1, s2, s3 = fma(a, a, s0), fma(b, b, s1), fma(c, c, s2), fma(d, d, s3)
        _add_to(out, errors, s0)
        _add_to(out + 64, errors + 64, s1)
        _add_to(out + 128, errors + 128, s2)
        _add_to(out + 192, errors + 192, s3)


@register_jitable
def _columns16(x, ldx, first, n, out, errors):
    for start in range(first, first + n, _BLOCK):
        s = zero_f32()
        for t in range(start, min(start + _BLOCK, first + n)):
            a = load_f32x16(x + t * ldx)
            s = fma(a, a, s)
        _add_to(out, errors, s)


def sum_squares() -> Callable[[int, int, int], None]:
    """Add each group's sums of squares to what is there."""

    def k(args, thread, n_threads):
        a = read(args)
        to_errors = a.errors - a.sums
        padded = (a.columns + 15) // 16 * 16
        n_parts = (padded + _WIDTH - 1) // _WIDTH
        while True:
            item = atomic_add(a.counter, 1)
            if item >= a.n_groups * n_parts:
                break
            g = item // n_parts
            start = item % n_parts * _WIDTH
            first, n = load_i64(a.ranges + a.range_stride * g), load_i64(a.ranges + a.range_stride * g + 8)
            if n == 0:
                continue
            x = a.x + g * a.x_stride
            out = a.sums + 4 * (g * padded + start)
            if start == 0:
                store_i64(a.counts + 8 * g, load_i64(a.counts + 8 * g) + n)
            if start + _WIDTH <= padded:
                _columns64(x + 4 * start, a.ld_x, first, n, out, out + to_errors)
            else:
                for c in range(0, padded - start, 16):
                    at = out + 4 * c
                    _columns16(x + 4 * (start + c), a.ld_x, first, n, at, at + to_errors)

    return k
