"""Rows of the token table, decoded from GGUF blocks where they lie in the file."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pyllm.jit.simd import atomic_add, load_f32, load_f64, load_i32, load_i64, store_f32
from pyllm.quant.kernels.decoders import BLOCKS


def embed(format: str) -> Callable[[int, int, int], None]:
    """Y[t] = table[tokens[t]] * scale. Slots: step, counter, table, Y, ldy in bytes, columns, scale."""
    block, size, n_bytes = BLOCKS[format]

    def k(args, thread, n_threads):
        step = load_i64(args)
        counter = load_i64(args + 8)
        table, y, ldy = load_i64(args + 16), load_i64(args + 24), load_i64(args + 32)
        columns = load_i64(args + 40)
        scale = np.float32(load_f64(args + 48))
        tokens, n = load_i64(step + 40), load_i64(step + 8)
        blocks = columns // size
        while True:
            t = atomic_add(counter, 1)
            if t >= n:
                break
            row, out = table + load_i32(tokens + 4 * t) * blocks * n_bytes, y + t * ldy
            for i in range(blocks):
                block(row + i * n_bytes, out + i * size * 4)
            if scale != np.float32(1):
                for i in range(columns):
                    store_f32(out + 4 * i, load_f32(out + 4 * i) * scale)

    return k
