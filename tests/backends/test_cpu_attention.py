"""Rotary positions, KV cache and attention kernels of the CPU backend against plain float64 numpy."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from cpu_tools import Memory
from numpy.typing import NDArray

from pyllm.backends.base import Batch
from pyllm.backends.cpu import attention as att
from pyllm.backends.cpu.kernels.attention_scratch import GENERATED
from pyllm.backends.cpu.linear import wide_supported
from pyllm.config import ExecutionOptions, KVDtype
from pyllm.errors import BackendError
from pyllm.jit.arguments import Arguments
from pyllm.jit.compiler import LIBRARY, Kernel
from pyllm.jit.memory import aligned_zeros
from pyllm.jit.target import host
from pyllm.program import Value
from pyllm.program.ops.attention import Attention

F64 = NDArray[np.float64]
_ENTRY = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
_COUNTER = np.zeros(8, np.int64)


def address(a: NDArray[Any]) -> int:
    return a.ctypes.data


def run(kernel: Kernel, step: NDArray[np.int64], args: Arguments, n_threads: int = 1) -> None:
    entry = _ENTRY(LIBRARY.load([kernel])[kernel])
    _COUNTER[:] = 0
    block = args.block(address(step), address(_COUNTER))
    others = [threading.Thread(target=entry, args=(address(block), i, n_threads)) for i in range(1, n_threads)]
    for t in others:
        t.start()
    entry(address(block), 0, n_threads)
    for t in others:
        t.join()


@dataclass
class Shape:
    n_heads: int = 6
    n_kv: int = 2
    head_dim: int = 64
    v_head_dim: int = 64
    window: int = 0
    softcap: float = 0.0
    sinks: bool = False
    half: int = 0
    interleaved: bool = False
    norm: bool = False
    page_size: int = 32
    dtype: KVDtype = "f32"


class Layer:
    """One layer with its cache, driven step by step; remembers all that was ever stored, for the oracle."""

    def __init__(self, shape: Shape, n_threads: int = 2, n_pages: int = 64, seed: int = 0, wide: bool = False) -> None:
        self.shape, self.n_threads = shape, n_threads
        self.random = np.random.default_rng(seed)
        o = shape
        value = Value(0, 1)
        op = Attention(
            out=value, layer=0, q=value, k=value, v=value, cache=0, n_heads=o.n_heads, n_kv_heads=o.n_kv,
            head_dim=o.head_dim, v_head_dim=o.v_head_dim, scale=o.head_dim**-0.5, window=o.window, softcap=o.softcap,
        )  # fmt: skip
        self.plan = att.plan(op, page_size=o.page_size, dtype=o.dtype, max_generated=8, wide=wide)
        self.batch = Batch(ExecutionOptions(n_pages, o.page_size, max_tokens=2048, max_seqs=8))
        self.cache = aligned_zeros((n_pages, self.plan.layout.page_bytes), np.uint8)
        stride = self.plan.scratch_bytes
        self.scratch = aligned_zeros((n_threads, stride), np.uint8)
        self.scratch[:] = 0x7F  # kernels may not count on its content; this is a NaN
        self.shared = aligned_zeros((self.plan.shared_bytes,), np.uint8)
        self.step = np.zeros(32, np.int64)
        inv_freq = att_inv_freq(o.half)
        self.rope = att.RopeTable(inv_freq, 1.25, o.interleaved) if o.half else None
        self.q_weight = self.random.normal(1, 0.2, o.head_dim).astype(np.float32)
        self.k_weight = self.random.normal(1, 0.2, (o.n_kv, o.head_dim)).astype(np.float32)
        self.sinks = self.random.normal(0, 2, o.n_heads).astype(np.float32)
        self.free = list(self.random.permutation(n_pages))
        self.pages: dict[int, list[int]] = {}
        self.kept: dict[int, tuple[F64, F64]] = {}

    def normal(self, *shape: int) -> NDArray[np.float32]:
        return self.random.normal(0, 1.5, shape).astype(np.float32)

    def run(self, spans: Sequence[tuple[int, int]]) -> tuple[NDArray[np.float32], F64]:
        """A step of (sequence, number of tokens); returns outputs [tokens, heads * v_head_dim] and what the oracle
        says."""
        o, b = self.shape, self.batch
        b.clear()
        for s, n in spans:
            position = len(self.kept[s][0]) if s in self.kept else 0
            pages = self.pages.setdefault(s, [])
            while len(pages) * o.page_size < position + n:
                pages.append(self.free.pop())
            b.add([1] * n, position, pages, generated=n == 1 and b.n_tokens == b.n_seqs)
        n = b.n_tokens
        self.step[1], self.step[4], self.step[GENERATED] = n, b.n_seqs, b.n_generated
        self.step[6], self.step[8], self.step[9] = address(b.positions), address(b.spans), address(b.page_tables)
        self.step[10] = b.page_tables.strides[0]
        # Queries, keys and values as columns of one buffer, the last row ending where it ends.
        widths = (o.n_heads * o.head_dim, o.n_kv * o.head_dim, o.n_kv * o.v_head_dim)
        x = self.normal(n, sum(widths))
        q, k, v = np.split(x, np.cumsum(widths)[:2], axis=1)
        expected = self.oracle(spans, q, k, v)
        self.store(q, k, v)
        out = np.full((n + 1, o.n_heads * o.v_head_dim), np.nan, np.float32)
        args = self.plan.args(
            q=Memory(q), y=Memory(out), cache=Memory(self.cache), sinks=Memory(self.sinks) if o.sinks else None,
            scratch=Memory(self.scratch), tickets=Memory(self.shared),
            parts=Memory(self.shared[self.plan.tickets_bytes :]),
        )  # fmt: skip
        run(self.plan.kernel, self.step, args, self.n_threads)
        assert not self.shared[: self.plan.tickets_bytes].any()
        assert np.isnan(out[n]).all()
        return out[:n], expected

    def store(self, q: Any, k: Any, v: Any) -> None:
        o = self.shape
        table = np.zeros(1, np.float32)
        if self.rope:
            table = np.zeros((len(q), self.rope.row_bytes // 4), np.float32)
            frequencies = np.array(self.rope.inv_freq, np.float32)
            run(self.rope.kernel, self.step, self.rope.args(Memory(frequencies), Memory(table)), self.n_threads)
        norms = {}
        if o.norm:
            norms["q_norm"] = att.HeadNorm(Memory(self.q_weight), 1e-6)
            norms["k_norm"] = att.HeadNorm(Memory(self.k_weight), 1e-5, 4 * o.head_dim)
        args = self.plan.store_args(
            q=Memory(q), k=Memory(k), v=Memory(v), cache=Memory(self.cache), rope=self.rope, table=Memory(table),
            **norms, scratch=Memory(self.scratch),
        )  # fmt: skip
        run(self.plan.store_kernel, self.step, args, self.n_threads)

    def oracle(self, spans: Iterable[tuple[int, int]], q: Any, k: Any, v: Any) -> F64:
        o = self.shape
        out, t = [], 0
        for s, n in spans:
            position = len(self.kept[s][0]) if s in self.kept else 0
            at = np.arange(position, position + n)
            qs = self.turn(q[t : t + n].reshape(n, o.n_heads, -1), at, self.q_weight, 1e-6)
            ks = self.turn(k[t : t + n].reshape(n, o.n_kv, -1), at, self.k_weight, 1e-5)
            vs = v[t : t + n].reshape(n, o.n_kv, -1).astype(np.float64)
            if s in self.kept:
                ks, vs = np.concatenate([self.kept[s][0], ks]), np.concatenate([self.kept[s][1], vs])
            self.kept[s] = ks, vs
            out.append(self.attention(qs, ks, vs, at))
            t += n
        return np.concatenate(out)

    def turn(self, x: Any, positions: Any, weight: Any, eps: float) -> F64:
        """x [tokens, heads, head_dim]: norm and rotation, as asked."""
        x = x.astype(np.float64)
        if self.shape.norm:
            x = x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight
        return rotated(x, positions, self.rope) if self.rope else x

    def attention(self, q: F64, k: F64, v: F64, at: Any) -> F64:
        o = self.shape
        g = o.n_heads // o.n_kv
        scores = np.einsum("tkgd,skd->tkgs", q.reshape(len(q), o.n_kv, g, -1), k) * o.head_dim**-0.5
        if o.softcap:
            scores = o.softcap * np.tanh(scores / o.softcap)
        key = np.arange(len(k))
        seen = key <= at[:, None]
        if o.window:
            seen &= key > at[:, None] - o.window
        scores = np.where(seen[:, None, None], scores, -np.inf)
        if o.sinks:
            sink = np.broadcast_to(self.sinks.reshape(1, o.n_kv, g, 1), (*scores.shape[:3], 1))
            scores = np.concatenate([scores, sink], -1)
        w = np.exp(scores - scores.max(-1, keepdims=True))
        w /= w.sum(-1, keepdims=True)
        return np.einsum("tkgs,skd->tkgd", w[..., : len(k)], v).reshape(len(q), -1)


def att_inv_freq(half: int) -> tuple[float, ...]:
    return tuple(float(np.float32(10000.0 ** (-i / max(half, 1)))) for i in range(half))


def rotated(x: F64, positions: Any, rope: att.RopeTable) -> F64:
    """x [tokens, heads, head_dim] as complex numbers times e^(i angle)."""
    half = rope.half
    angle = (np.asarray(positions, np.float32)[:, None] * np.array(rope.inv_freq, np.float32)).astype(np.float64)
    turn = rope.mscale * np.exp(1j * angle)[:, None]
    out = x.copy()
    a, b = (
        (slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if rope.interleaved else (slice(0, half), slice(half, 2 * half))
    )
    z = (x[..., a] + 1j * x[..., b]) * turn
    out[..., a], out[..., b] = z.real, z.imag
    return out


def nmse(out: Any, expected: F64) -> float:
    assert np.isfinite(out).all()
    return float(((out - expected) ** 2).sum() / (expected**2).sum())


STEPS = ([(0, 70)], [(0, 1)], [(1, 129), (0, 1), (2, 3)], [(0, 1), (1, 1), (2, 1)], [(2, 30), (1, 9), (3, 1)])


@pytest.mark.parametrize(
    "shape",
    [
        Shape(),
        Shape(n_heads=9, n_kv=3, half=32),
        Shape(n_heads=4, n_kv=4, head_dim=80, v_head_dim=80, half=10, norm=True),
        Shape(n_heads=12, n_kv=2, head_dim=128, v_head_dim=128, half=64, norm=True, interleaved=True),
        Shape(n_heads=5, n_kv=1, head_dim=40, v_head_dim=72, half=12, interleaved=True, page_size=16),
        Shape(n_heads=8, n_kv=1, head_dim=192, v_head_dim=128, softcap=5.0, sinks=True),
        Shape(n_heads=8, n_kv=4, window=40, sinks=True, half=32),
        Shape(n_heads=64, n_kv=1, head_dim=16, v_head_dim=16, window=128, softcap=3.0, page_size=48),
        Shape(n_heads=2, n_kv=1, head_dim=512, v_head_dim=512),
        Shape(n_heads=17, n_kv=1, head_dim=576, v_head_dim=512),
    ],
    ids=str,
)
@pytest.mark.parametrize("n_threads", [1, 2])
def test_ragged_steps_agree_with_float64(shape: Shape, n_threads: int) -> None:
    layer = Layer(shape, n_threads)
    for spans in STEPS:
        out, expected = layer.run(spans)
        assert nmse(out, expected) < 1e-11


def test_half_precision_cache_loses_only_its_rounding() -> None:
    for shape in (
        Shape(dtype="f16", half=32, norm=True),
        Shape(n_heads=3, n_kv=3, head_dim=96, v_head_dim=88, dtype="f16"),
    ):
        layer = Layer(shape)
        for spans in STEPS:
            out, expected = layer.run(spans)
            assert nmse(out, expected) < 1e-6


@pytest.mark.parametrize(
    "shape",
    [
        Shape(n_heads=9, n_kv=3, half=32),
        Shape(n_heads=7, n_kv=1, head_dim=80, v_head_dim=88, window=50, sinks=True, page_size=16),
        Shape(n_heads=8, n_kv=2, head_dim=128, v_head_dim=128, softcap=4.0),
    ],
    ids=str,
)
def test_wide_kernels_round_values_to_bfloat16_and_scores_hardly(shape: Shape) -> None:
    if not wide_supported(host()):
        pytest.skip("no AMX tiles here")
    layer = Layer(replace(shape, dtype="f16"), wide=True)
    for spans in (*STEPS, [(0, 300)]):
        out, expected = layer.run(spans)
        assert nmse(out, expected) < 1e-5


@pytest.mark.parametrize("window", [0, 300])
def test_long_contexts_are_divided_and_combined(window: int) -> None:
    layer = Layer(
        Shape(n_heads=3, n_kv=1, head_dim=32, v_head_dim=24, window=window, sinks=True), n_threads=3, n_pages=80
    )
    layer.run([(0, 1900)])
    for spans in ([(0, 1)], [(1, 5), (0, 20)], [(0, 1), (1, 1)]):
        out, expected = layer.run(spans)
        assert nmse(out, expected) < 1e-11


def test_an_interrupted_step_leaves_no_trace() -> None:
    layer = Layer(Shape(n_heads=3, n_kv=1, head_dim=32, v_head_dim=32))
    layer.run([(0, 1500)])
    layer.step[13] = 1
    out, _ = layer.run([(0, 1), (1, 9)])
    assert np.isnan(out).all()
    layer.step[13] = 0
    out, expected = layer.run([(0, 1), (1, 2)])
    assert nmse(out, expected) < 1e-11


def test_rotations_stay_exact_at_high_positions() -> None:
    for interleaved in (False, True):
        rope = att.RopeTable(att_inv_freq(32), 1.0, interleaved)
        positions = np.array([0, 1, 2**17 + 3, 999_999, 2**20 - 1], np.int32)
        x = np.random.default_rng(1).normal(0, 1, (5, 2, 72)).astype(np.float32)
        table = np.zeros((5, rope.row_bytes // 4), np.float32)
        step = np.zeros(32, np.int64)
        step[1], step[6] = 5, address(positions)
        frequencies = np.array(rope.inv_freq, np.float32)
        run(rope.kernel, step, rope.args(Memory(frequencies), Memory(table)))
        y = np.zeros_like(x)
        args = att.rotate_args(x=Memory(x), y=Memory(y), n_heads=2, head_dim=72, rope=rope, table=Memory(table))
        run(att.ROTATE, step, args)
        assert np.abs(y - rotated(x.astype(np.float64), positions, rope)).max() < 1e-6


def test_extreme_scores_neither_overflow_nor_hang() -> None:
    layer = Layer(Shape(dtype="f16"))
    layer.normal = lambda *shape: np.full(shape, 3e4, np.float32)  # type: ignore[method-assign]
    out, _ = layer.run([(0, 100)])
    np.testing.assert_allclose(out, 3e4, rtol=1e-3)
    layer.normal = lambda *shape: np.full(shape, np.nan, np.float32)  # type: ignore[method-assign]
    layer.run([(0, 3)])


def test_values_beyond_half_precision_are_held_at_its_largest() -> None:
    layer = Layer(Shape(dtype="f16"))
    layer.normal = lambda *shape: np.full(shape, 1e6, np.float32)  # type: ignore[method-assign]
    assert np.abs(layer.run([(0, 20)])[0]).max() < 65505


def test_pages_must_hold_whole_groups() -> None:
    with pytest.raises(BackendError, match="multiple of 16"):
        Layer(Shape(page_size=24))
