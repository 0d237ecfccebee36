"""Attention kernels alone, against what the processor does at most: `python benchmarks/attention_kernels.py [threads]`.

Prompts are counted in products of visible pairs of positions only, queries by keys and weights by values; generation in
bytes of keys and values read. Each case reads caches of several layers in turn, so that it finds them as a model does.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.backends.base import Batch
from pyllm.backends.cpu import attention as att
from pyllm.backends.cpu.arguments.peak import MultiplyAdd, Read
from pyllm.backends.cpu.kernels import kernel
from pyllm.backends.cpu.kernels.attention_scratch import GENERATED
from pyllm.backends.cpu.linear import wide_supported
from pyllm.config import ExecutionOptions
from pyllm.jit.arguments import Arguments, Place
from pyllm.jit.compiler import LIBRARY, Kernel
from pyllm.jit.memory import Memory, aligned_zeros
from pyllm.jit.target import host
from pyllm.jit.threads import Pool
from pyllm.program import Value
from pyllm.program.ops.attention import Attention

SHAPES = {
    "SmolLM2 135M": (9, 3, 64),
    "Qwen2.5 1.5B": (12, 2, 128),
    "Llama 8B": (32, 8, 128),
    "one head each": (12, 12, 64),
    "gemma": (8, 4, 256),
}
CACHE_BYTES = 256 << 20


def seconds(k: Kernel, calls: list[NDArray[np.int64]], pool: Pool, counter: NDArray[np.int64]) -> float:
    """Seconds of the quickest call: others may be using the machine."""
    address = LIBRARY.load([k])[k]
    times: list[float] = []
    while sum(times) < 0.4 or len(times) < 5:
        for args in calls:
            counter[0] = 0
            start = time.perf_counter()
            pool.run(address, args.ctypes.data)
            times.append(time.perf_counter() - start)
    return min(times)


def place(array: NDArray[Any]) -> Place:
    return Place(array.ctypes.data, array.strides[0])


class Case:
    """A batch of sequences at a depth, and the arguments of both kernels for each of several layers."""

    def __init__(
        self, shape: tuple[int, int, int], spans: list[tuple[int, int]], pool: Pool, wide: bool = False
    ) -> None:
        self.n_heads, self.n_kv, self.dim = shape
        self.pool, self.spans, n_threads = pool, spans, pool.n_threads
        value = Value(0, 1)
        op = Attention(
            out=value, layer=0, q=value, k=value, v=value, cache=0, n_heads=self.n_heads, n_kv_heads=self.n_kv,
            head_dim=self.dim, v_head_dim=self.dim, scale=self.dim**-0.5,
        )  # fmt: skip
        self.plan = plan = att.plan(op, page_size=32, dtype="f16", max_seqs=len(spans), wide=wide)
        needed = [(depth + n + 31) // 32 for depth, n in spans]
        n_pages, n = sum(needed), sum(n for _, n in spans)
        layer = n_pages * plan.layout.page_bytes
        n_layers = max(1, min(64, CACHE_BYTES // layer))
        self.memory = Memory(n_layers * layer, "caches")
        random = np.random.default_rng(0)
        halves = random.normal(0, 1, 1 << 16).astype(np.float16).view(np.uint8)
        whole = (ctypes.c_char * (n_layers * layer)).from_address(self.memory.address)
        view = np.frombuffer(whole, np.uint8)
        view[: len(view) // len(halves) * len(halves)].reshape(-1, len(halves))[:] = halves
        self.batch = Batch(ExecutionOptions(n_pages, 32, max_tokens=n, max_seqs=len(spans)))
        pages = list(random.permutation(n_pages))
        for (depth, m), k in zip(spans, needed, strict=True):
            self.batch.add([0] * m, depth, [pages.pop() for _ in range(k)])
        b = self.batch
        self.step = np.zeros(32, np.int64)
        self.step[[1, 4]] = n, b.n_seqs
        self.step[GENERATED] = n if n == b.n_seqs else 0
        self.step[[6, 8, 9]] = b.positions.ctypes.data, b.spans.ctypes.data, b.page_tables.ctypes.data
        self.step[10] = b.page_tables.strides[0]
        width = (self.n_heads + 2 * self.n_kv) * self.dim
        self.x = random.normal(0, 1, (n, width)).astype(np.float32)
        self.out = aligned_zeros((n, self.n_heads * self.dim), np.float32)
        self.scratch = aligned_zeros((n_threads, plan.scratch_bytes), np.uint8)
        self.shared = aligned_zeros((plan.shared_bytes,), np.uint8)
        self.counter = aligned_zeros((8,), np.int64)
        self.rope = att.RopeTable(tuple(float(10000 ** (-i / 32)) for i in range(self.dim // 2)), 1.0, False)
        self.table = aligned_zeros((n, self.rope.row_bytes // 4), np.float32)
        self.table[:] = 0.7
        self.layers = [self.memory.address + i * layer for i in range(n_layers)]

    def block(self, args: Arguments) -> NDArray[np.int64]:
        return args.block(self.step.ctypes.data, self.counter.ctypes.data)

    def attend(self) -> float:
        tickets = self.shared.ctypes.data
        parts = Place(tickets + self.plan.tickets_bytes)
        calls = [
            self.block(
                self.plan.args(
                    q=place(self.x), y=place(self.out), cache=Place(c), scratch=place(self.scratch), parts=parts,
                    tickets=Place(tickets),
                )
            )
            for c in self.layers
        ]  # fmt: skip
        return seconds(self.plan.kernel, calls, self.pool, self.counter)

    def store(self) -> float:
        start = self.n_heads * self.dim
        k, v = place(self.x[:, start:]), place(self.x[:, start + self.n_kv * self.dim :])
        calls = [
            self.block(
                self.plan.store_args(
                    q=place(self.x), k=k, v=v, cache=Place(c), rope=self.rope, table=place(self.table),
                    scratch=place(self.scratch),
                )
            )
            for c in self.layers
        ]  # fmt: skip
        return seconds(self.plan.store_kernel, calls, self.pool, self.counter)

    def products(self) -> int:
        """Multiply-adds for visible pairs."""
        pairs = sum(n * depth + n * (n + 1) // 2 for depth, n in self.spans)
        return 2 * pairs * self.n_heads * self.dim

    def bytes_read(self) -> int:
        return sum(depth + n for depth, n in self.spans) * 2 * self.n_kv * self.dim * 2


def peaks(pool: Pool) -> tuple[float, float]:
    """Multiply-adds and bytes a second."""
    counter, room = np.zeros(8, np.int64), aligned_zeros((pool.n_threads + 1, 16), np.float32)
    items, rounds = 64, 100_000
    args = MultiplyAdd(n_items=items, n_rounds=rounds, spare=place(room)).block(0, counter.ctypes.data)
    products = items * rounds * 12 * 16 / seconds(kernel("peak", "multiply_add"), [args], pool, counter)
    items, n = 256, 1 << 20
    memory = Memory(items * n, "reading")
    ctypes.memset(memory.address, 0, items * n)
    read_args = Read(n_items=items, item_bytes=n, spare=place(room), memory=Place(memory.address))
    args = read_args.block(0, counter.ctypes.data)
    read = items * n / seconds(kernel("peak", "read"), [args], pool, counter)
    memory.close()
    return products, read


def row(name: str, *cells: Any) -> None:
    print(f"{name:38s}" + "".join(f"{c:>16}" for c in cells), flush=True)


def report(pool: Pool, only: Callable[[str], bool]) -> None:
    products, read = peaks(pool)
    row(f"{host().cpu}, {pool.n_threads} threads", f"{products / 1e9:.0f} GMAC/s", f"{read / 1e9:.1f} GB/s")
    for name, shape in SHAPES.items():
        if not only(name):
            continue
        for title, spans in (
            ("prompt 512", [(0, 512)]),
            ("prompt 512 at 4096", [(4096, 512)]),
            ("1 token at 512", [(512, 1)]),
            ("1 token at 4096", [(4096, 1)]),
            ("16 sequences at 512", [(512, 1)] * 16),
        ):
            case = Case(shape, spans, pool)
            t, s = case.attend(), case.store()
            if "prompt" in title:
                speed, share = f"{case.products() / t / 1e9:.1f} GMAC/s", case.products() / t / products
            else:
                speed, share = f"{case.bytes_read() / t / 1e9:.1f} GB/s", case.bytes_read() / t / read
            row(f"{name}, {title}", f"{t * 1e6:.1f} us", speed, f"{share:.0%}", f"store {s * 1e6:.1f} us")
            case.memory.close()
            if "prompt" in title and wide_supported(host()):
                case = Case(shape, spans, pool, wide=True)
                t = case.attend()
                row(f"{name}, {title}, wide", f"{t * 1e6:.1f} us", f"{case.products() / t / 1e9:.1f} GMAC/s")
                case.memory.close()


if __name__ == "__main__":
    words = sys.argv[2:]
    report(Pool(int(sys.argv[1]) if len(sys.argv) > 1 else 1), lambda name: not words or any(w in name for w in words))
