"""What the processor does at most, multiply-adds and reads: the measure of other kernels in benchmarks."""

from __future__ import annotations

from typing import Any

from pyllm.backends.cpu.simd import fma, load_f32x16, load_i64, store_f32x16
from pyllm.backends.cpu.simd.core import target

CHAINS = 12


def multiply_add() -> Any:
    """Slots: unused, unused, rounds, address of 64 bytes for each thread and 64 more. A round is CHAINS times 16
    products; there are as many chains as registers allow."""
    scope: dict[str, Any] = {"fma": fma, "load_f32x16": load_f32x16, "load_i64": load_i64, "store_f32x16": store_f32x16}
    n = CHAINS if target().isa.startswith("avx512") else CHAINS // 4
    lines = ["def kernel(args, thread, n_threads):", "    p = load_i64(args + 24)", "    y = load_f32x16(p)"]
    lines += [f"    x{i} = load_f32x16(p)" for i in range(n)]
    lines += [f"    for i in range(load_i64(args + 16) * {CHAINS // n}):"]
    lines += [f"        x{i} = fma(x{i}, y, y)" for i in range(n)]
    lines += [f"    x0 = x0 + x{i}" for i in range(1, n)]
    lines += ["    store_f32x16(p + 64 + 64 * thread, x0)"]
    exec("\n".join(lines), scope)
    return scope["kernel"]


def read() -> Any:
    """Slots: unused, unused, address, bytes (a multiple of 1024 for each thread), address as in `multiply_add`. Each
    thread reads its share once."""

    def kernel(args, thread, n_threads):
        n = load_i64(args + 24) // n_threads // 1024 * 1024
        first = load_i64(args + 16) + thread * n
        p = load_i64(args + 32)
        a = b = c = d = load_f32x16(p)
        for q in range(first, first + n, 256):
            a = a + load_f32x16(q)
            b = b + load_f32x16(q + 64)
            c = c + load_f32x16(q + 128)
            d = d + load_f32x16(q + 192)
        store_f32x16(p + 64 + 64 * thread, a + b + c + d)

    return kernel
