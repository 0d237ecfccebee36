"""Rows of float32 stored as activation records, where no other kernel has done it on the way."""

from __future__ import annotations

from pyllm.backends.cpu.kernels.activation import store_activation
from pyllm.backends.cpu.simd import atomic_add, load_i64


def quantize():
    """Slots: step, counter, X, ldx bytes, records, ld bytes, n_cols, range."""

    def kernel(args, thread, n_threads):
        step = load_i64(args)
        counter = load_i64(args + 8)
        x = load_i64(args + 16)
        ldx = load_i64(args + 24)
        y = load_i64(args + 32)
        ldy = load_i64(args + 40)
        n_cols = load_i64(args + 48)
        rows = load_i64(args + 56)
        wide = load_i64(step + 96)
        first = load_i64(rows)
        n = load_i64(rows + 8)
        while True:
            t = atomic_add(counter, 1)
            if t >= n:
                break
            store_activation(x + (first + t) * ldx, y + (first + t) * ldy, n_cols, wide)

    return kernel
