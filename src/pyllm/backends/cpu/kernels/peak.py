"""What the processor does at most, multiply-adds and reads: the measure of other kernels in benchmarks."""

from __future__ import annotations

from typing import Any

from pyllm.backends.cpu.kernels.attention_tiles import tile_shape
from pyllm.jit.simd import atomic_add, fma, load_f32x16, load_i64, store_f32x16

CHAINS = 12


def multiply_add() -> Any:
    """Slots: step, counter, items, rounds of an item, address of 64 bytes and 64 more for each thread. A round is
    CHAINS times 16 products; there are as many chains as registers allow."""
    scope: dict[str, Any] = {
        "atomic_add": atomic_add, "fma": fma, "load_f32x16": load_f32x16, "load_i64": load_i64,
        "store_f32x16": store_f32x16,
    }  # fmt: skip
    n = CHAINS // tile_shape().registers
    lines = ["def kernel(args, thread, n_threads):", "    p = load_i64(args + 32)", "    y = load_f32x16(p)"]
    lines += [f"    x{i} = load_f32x16(p)" for i in range(n)]
    lines += ["    while atomic_add(load_i64(args + 8), 1) < load_i64(args + 16):"]
    lines += [f"        for i in range(load_i64(args + 24) * {CHAINS // n}):"]
    lines += [f"            x{i} = fma(x{i}, y, y)" for i in range(n)]
    lines += [f"    x0 = x0 + x{i}" for i in range(1, n)]
    lines += ["    store_f32x16(p + 64 + 64 * thread, x0)"]
    exec("\n".join(lines), scope)
    return scope["kernel"]


def read() -> Any:
    """Slots: step, counter, items, bytes of an item (a multiple of 256), address as in `multiply_add`, memory."""

    def kernel(args, thread, n_threads):
        n = load_i64(args + 24)
        p = load_i64(args + 32)
        memory = load_i64(args + 40)
        a = b = c = d = load_f32x16(p)
        while True:
            item = atomic_add(load_i64(args + 8), 1)
            if item >= load_i64(args + 16):
                break
            for q in range(memory + item * n, memory + item * n + n, 256):
                a = a + load_f32x16(q)
                b = b + load_f32x16(q + 64)
                c = c + load_f32x16(q + 128)
                d = d + load_f32x16(q + 192)
        store_f32x16(p + 64 + 64 * thread, a + b + c + d)

    return kernel
