"""Convolution over the last tokens of a sequence: each column for itself."""

from __future__ import annotations

from collections.abc import Callable

from numba.extending import register_jitable

from pyllm.backends.cpu.arguments.conv import ShortConv
from pyllm.backends.cpu.kernels.recurrent import first_save, save_of, state_before, tokens_of, vectors_at_once
from pyllm.jit.reader import reader
from pyllm.jit.simd import (
    atomic_add,
    fma,
    load_f32x16,
    load_first_f32,
    load_i64,
    store_f32x16,
    store_first_f32,
    zero_f32,
)

read = reader(ShortConv)

_MOST_VECTORS = 64
"""Of a work item: its weights and the last rows stay in the first-level cache."""


@register_jitable
def _row(x, ld_x, source, ld_source, before, t):
    """Address of row t of a sequence: of x, of the `before` rows before it, or 0 where these are zeros."""
    if t >= 0:
        return x + t * ld_x
    return source + (t + before) * ld_source if source != 0 else 0


@register_jitable
def _load(row, c, columns):
    """Columns c .. c + 15 of a row, zeros beyond its last."""
    return load_f32x16(row + 4 * c) if c + 16 <= columns else load_first_f32(row + 4 * c, columns - c)


@register_jitable
def _copy_row(row, out, low, high, columns):
    """Columns low .. high - 1 of a row, zeros where its address is 0."""
    for c in range(low, high, 16):
        v = _load(row, c, columns) if row != 0 else zero_f32()
        store_first_f32(out + 4 * c, v, min(16, columns - c))


def short_conv(taps: int) -> Callable[[int, int, int], None]:
    """One item is some columns of a sequence. A row of the output is a chain of sums: bias, then the oldest row."""
    before = taps - 1

    @register_jitable
    def first_row(a, x, source, t, y, low, high):
        """Row t < taps - 1 of a sequence, which depends on rows before its tokens."""
        for c in range(low, high, 16):
            v = load_f32x16(a.bias + 4 * c) if a.bias != 0 else zero_f32()
            for j in range(taps):
                row = _row(x, a.ld_x, source, 4 * a.columns, before, t - before + j)
                if row != 0:
                    v = fma(_load(row, c, a.columns), load_f32x16(a.weight + j * a.ld_weight + 4 * c), v)
            store_f32x16(y + 4 * c, v)

    @register_jitable
    def later_row(a, x, y, low, high):
        """A row of which the first of its `taps` rows is at x."""
        for c in range(low, high, 16):
            v = load_f32x16(a.bias + 4 * c) if a.bias != 0 else zero_f32()
            for j in range(taps):
                v = fma(load_f32x16(x + j * a.ld_x + 4 * c), load_f32x16(a.weight + j * a.ld_weight + 4 * c), v)
            store_f32x16(y + 4 * c, v)

    def k(args, thread, n_threads):
        a = read(args)
        n_seqs = load_i64(a.step + 32)
        n_vectors = (a.columns + 15) // 16
        width = 16 * vectors_at_once(n_vectors, n_seqs, n_threads, _MOST_VECTORS)
        n_parts = (a.columns + width - 1) // width
        while True:
            item = atomic_add(a.counter, 1)
            if item >= n_seqs * n_parts:
                break
            seq = item // n_parts
            low = item % n_parts * width
            high = min(low + width, a.columns)
            first, n = tokens_of(a.step, seq)
            source = state_before(a.step, seq, a.states, a.ld_states)
            save = first_save(a.step, seq)
            x = a.x + first * a.ld_x
            for t in range(n):
                y = a.y + (first + t) * a.ld_y
                if t < before:
                    first_row(a, x, source, t, y, low, high)
                else:
                    later_row(a, x + (t - before) * a.ld_x, y, low, high)
                slot = save_of(a.step, save, t + 1, a.states, a.ld_states)
                if slot != 0:
                    save += 1
                    for j in range(before):
                        row = _row(x, a.ld_x, source, 4 * a.columns, before, t + 1 - before + j)
                        _copy_row(row, slot + 4 * a.columns * j, low, high, a.columns)

    return k
