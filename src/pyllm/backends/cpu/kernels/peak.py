"""Peak rates of the processor, multiply-adds and reads: the reference of benchmarks."""

from __future__ import annotations

from typing import Any

from pyllm.backends.cpu.arguments.peak import MultiplyAdd, Read
from pyllm.backends.cpu.kernels.attention_tiles import tile_shape
from pyllm.jit.reader import reader
from pyllm.jit.simd import atomic_add, fma, load_f32x16, store_f32x16

CHAINS = 12

read_products, read_memory = reader(MultiplyAdd), reader(Read)


def multiply_add() -> Any:
    """As many chains of products as registers allow."""
    scope: dict[str, Any] = {
        "atomic_add": atomic_add, "fma": fma, "load_f32x16": load_f32x16, "read": read_products,
        "store_f32x16": store_f32x16,
    }  # fmt: skip
    n = CHAINS // tile_shape().registers
    lines = ["def kernel(args, thread, n_threads):", "    a = read(args)", "    y = load_f32x16(a.spare)"]
    lines += [f"    x{i} = load_f32x16(a.spare)" for i in range(n)]
    lines += ["    while atomic_add(a.counter, 1) < a.n_items:"]
    lines += [f"        for i in range(a.n_rounds * {CHAINS // n}):"]
    lines += [f"            x{i} = fma(x{i}, y, y)" for i in range(n)]
    lines += [f"    x0 = x0 + x{i}" for i in range(1, n)]
    lines += ["    store_f32x16(a.spare + 64 + 64 * thread, x0)"]
    exec("\n".join(lines), scope)
    return scope["kernel"]


def read() -> Any:
    """Vector loads, one after the other."""

    def kernel(args, thread, n_threads):
        own = read_memory(args)
        a = b = c = d = load_f32x16(own.spare)
        while True:
            item = atomic_add(own.counter, 1)
            if item >= own.n_items:
                break
            start = own.memory + item * own.item_bytes
            for q in range(start, start + own.item_bytes, 256):
                a = a + load_f32x16(q)
                b = b + load_f32x16(q + 64)
                c = c + load_f32x16(q + 128)
                d = d + load_f32x16(q + 192)
        store_f32x16(own.spare + 64 + 64 * thread, a + b + c + d)

    return kernel
