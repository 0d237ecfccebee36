"""Speed of the CPU kernels of recurrent ops, alone: products of states a second beside multiply-adds out of registers,
and states read and written a second beside a plain read of memory.

    python benchmarks/recurrent.py [THREADS] [NAME ...]

Of all repetitions the quickest counts. Their share of whole steps: recurrent_shapes.py and profile_step.py.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

import numpy as np

from attention_kernels import peaks, place, row
from pyllm.backends.base import Batch
from pyllm.backends.cpu.arguments.conv import ShortConv
from pyllm.backends.cpu.arguments.delta import N_OF_ROWS, DeltaRule
from pyllm.backends.cpu.kernels import kernel
from pyllm.backends.cpu.kernels.heads_scratch import scratch_bytes
from pyllm.backends.cpu.table import STATE_IN
from pyllm.config import ExecutionOptions
from pyllm.jit.arguments import Arguments, Place
from pyllm.jit.compiler import LIBRARY, Kernel
from pyllm.jit.memory import Memory, aligned_zeros
from pyllm.jit.target import host
from pyllm.jit.threads import Pool

STATE_BYTES = 256 << 20
"""Bytes of states of all layers, as many layers as fit: more than caches hold."""


@dataclass(frozen=True)
class Heads:
    n_heads: int
    n_key_heads: int
    key_dim: int
    value_dim: int
    by_row: bool = False

    @property
    def n_numbers(self) -> int:
        return self.n_heads * self.key_dim * self.value_dim


SHAPES = {
    "Qwen3.5 0.8B": Heads(16, 16, 128, 128),
    "Qwen3.5 9B": Heads(32, 16, 128, 128),
    "Kimi Linear": Heads(32, 32, 128, 128, by_row=True),
}


class Steps:
    """A step of several sequences, and the same kernel's calls for each layer, whose states are apart."""

    def __init__(self, pool: Pool, n_seqs: int, n_tokens: int, state_bytes: int) -> None:
        self.pool, self.n = pool, n_seqs * n_tokens
        layer = 2 * n_seqs * state_bytes
        self.n_layers = max(1, STATE_BYTES // layer)
        self.memory = Memory(self.n_layers * layer, "states")
        self.batch = b = Batch(ExecutionOptions(n_seqs, n_tokens + 1, self.n, n_seqs, n_slots=2 * n_seqs))
        for s in range(n_seqs):
            b.add([0] * n_tokens, 1, [s], state_in=2 * s, saves=[(n_tokens, 2 * s + 1)])
        self.step = np.zeros(32, np.int64)
        self.step[[1, 4, 8]] = self.n, n_seqs, b.spans.ctypes.data
        self.step[STATE_IN : STATE_IN + 4] = [a.ctypes.data for a in (b.state_in, b.saves, b.save_after, b.save_slot)]
        self.counter = aligned_zeros((8,), np.int64)
        self.states = [Place(self.memory.address + i * layer, state_bytes) for i in range(self.n_layers)]
        self.random = np.random.default_rng(0)

    def rows(self, width: int, mean: float = 0.0, deviation: float = 0.1) -> np.ndarray:
        out = aligned_zeros((self.n, -(-width // 16) * 16 + 16), np.float32)
        out[:] = self.random.normal(mean, deviation, out.shape)
        return out

    def seconds(self, compiled: Kernel, args: list[Arguments]) -> float:
        """Of a layer."""
        address = LIBRARY.load([compiled])[compiled]
        blocks = [a.block(self.step.ctypes.data, self.counter.ctypes.data) for a in args]
        best = 1e9
        for _ in range(12):
            start = time.perf_counter()
            for block in blocks:
                self.counter[0] = 0
                self.pool.run(address, block.ctypes.data)
            best = min(best, time.perf_counter() - start)
        return best / len(blocks)


def delta(pool: Pool, h: Heads, n_seqs: int, n_tokens: int) -> float:
    s = Steps(pool, n_seqs, n_tokens, 4 * h.n_numbers)
    keys, values = h.n_key_heads * h.key_dim, h.n_heads * h.value_dim
    q, k, v, y = s.rows(keys), s.rows(keys), s.rows(values), s.rows(values)
    decay = s.rows(h.n_heads * (h.key_dim if h.by_row else 1), -0.1, 0.01)
    beta, scratch = (
        s.rows(h.n_heads, 0.5),
        aligned_zeros((pool.n_threads, scratch_bytes(h.key_dim, N_OF_ROWS)), np.uint8),
    )
    args = [
        DeltaRule(
            q=place(q), k=place(k), v=place(v), decay=place(decay), beta=place(beta), y=place(y), states=states,
            n_heads=h.n_heads, n_key_heads=h.n_key_heads, tiled=0, key_dim=h.key_dim, value_dim=h.value_dim,
            scale=h.key_dim**-0.5, scratch=place(scratch),
        )
        for states in s.states
    ]  # fmt: skip
    t = s.seconds(kernel("delta", "delta_rule", by_row=int(h.by_row)), list(args))
    s.memory.close()
    return t


def convolution(pool: Pool, columns: int, n_tokens: int) -> float:
    s = Steps(pool, 1, n_tokens, 12 * columns)
    x, y, weight = s.rows(columns), s.rows(columns), aligned_zeros((4, columns), np.float32)
    args = [
        ShortConv(x=place(x), y=place(y), weight=place(weight), columns=columns, states=states)
        for states in s.states[:16]
    ]
    t = s.seconds(kernel("conv", "short_conv", taps=4), list(args))
    s.memory.close()
    return t


def report(pool: Pool, words: list[str]) -> None:
    products, read = peaks(pool)
    row(f"{host().cpu}, {pool.n_threads} threads", f"{products / 1e9:.0f} GMAC/s", f"{read / 1e9:.1f} GB/s")
    for name, h in SHAPES.items():
        if words and not any(word in name for word in words):
            continue
        t = delta(pool, h, 1, 512)
        speed = 4 * 512 * h.n_numbers / t
        row(f"{name}, prompt 512", f"{t * 1e6:.1f} us", f"{speed / 1e9:.1f} GMAC/s", f"{speed / products:.0%}")
        for n_seqs in (1, 8):
            t = delta(pool, h, n_seqs, 1)
            speed = 8 * n_seqs * h.n_numbers / t
            row(f"{name}, {n_seqs} x 1 token", f"{t * 1e6:.1f} us", f"{speed / 1e9:.1f} GB/s", f"{speed / read:.0%}")
    for n in (512, 1):
        t = convolution(pool, 6144, n)
        row(f"convolution of 6144 columns, {n}", f"{t * 1e6:.1f} us", f"{8 * 6144 * n / t / 1e9:.1f} GB/s")


if __name__ == "__main__":
    report(Pool(int(sys.argv[1]) if len(sys.argv) > 1 else 1), sys.argv[2:])
