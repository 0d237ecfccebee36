"""Rows of the table of tokens or positions, decoded from the GGUF blocks in the file's map."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pyllm.backends.cpu.arguments.embed import Embed
from pyllm.jit.reader import reader
from pyllm.jit.simd import atomic_add, load_f32, load_i32, load_i64, store_f32
from pyllm.quant.kernels.decoders import BLOCKS

read = reader(Embed)


def embed(format: str) -> Callable[[int, int, int], None]:
    """Y[t] = table[tokens[t]] * scale, or table[positions[t]] * scale."""
    block, size, n_bytes = BLOCKS[format]

    def k(args, thread, n_threads):
        a = read(args)
        scale = np.float32(a.scale)
        which, n = load_i64(a.step + (48 if a.of_positions else 40)), load_i64(a.step + 8)
        blocks = a.columns // size
        while True:
            t = atomic_add(a.counter, 1)
            if t >= n:
                break
            row, out = a.table + load_i32(which + 4 * t) * blocks * n_bytes, a.y + t * a.ld_y
            for i in range(blocks):
                block(row + i * n_bytes, out + i * size * 4)
            if scale != np.float32(1):
                for i in range(a.columns):
                    store_f32(out + 4 * i, load_f32(out + 4 * i) * scale)

    return k
