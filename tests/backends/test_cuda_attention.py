"""CUDA kernels of norms, rotation, elementwise ops, KV caches and attention against the reference's functions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import cuda_tools
import numpy as np
import pytest
from numpy.typing import NDArray
from oracle import nmse

from pyllm.backends.base import Batch
from pyllm.backends.cuda import attention, compiler, elementwise, kv
from pyllm.backends.cuda.graphs import shape_of
from pyllm.backends.cuda.launch import Q8, TOKENS, Facts, Forms, Half, Launch, StepArrays, StepShape, View
from pyllm.backends.cuda.launcher import Launcher
from pyllm.backends.plan.memory import Buffer
from pyllm.backends.reference.functions import soft_cap
from pyllm.backends.reference.ops.attention import attention as reference_attention
from pyllm.backends.reference.ops.gate import gated_activation, xielu
from pyllm.backends.reference.ops.norm import layer_norm, rms_norm
from pyllm.backends.reference.ops.rope import rope as reference_rope
from pyllm.config import ExecutionOptions
from pyllm.errors import BackendError
from pyllm.program import Value, Weight
from pyllm.program.ops.attention import Attention, alibi_slopes
from pyllm.program.ops.gate import ACTIVATIONS, LIMITED, UNARY
from pyllm.program.ops.rope import Rope

F32 = NDArray[np.float32]
OPTIONS = ExecutionOptions(n_pages=24, page_size=16, max_tokens=64, max_seqs=4, max_rows=64)
RANDOM = np.random.default_rng(6)


def normal(*shape: int, std: float = 1.0) -> F32:
    return (std * RANDOM.standard_normal(shape)).astype(np.float32)


class Bench:
    """Runs launches on a device: gives their buffers memory, fills some, reads others."""

    def __init__(self, launcher: Launcher, options: ExecutionOptions = OPTIONS) -> None:
        self.launcher, self.options = launcher, options
        self.buffers: list[Buffer] = []
        self.arrays = StepArrays.of(options)
        self.shape = StepShape(1, 1, 1, 0, 16, 1)

    def put(self, buffer: Buffer, values: NDArray) -> Buffer:
        assert values.nbytes <= buffer.n_bytes
        self.place(buffer)
        self.launcher.upload(buffer.address, np.ascontiguousarray(values), wait=True)
        return buffer

    def vector(self, values: NDArray) -> Buffer:
        return self.put(Buffer(values.nbytes), values)

    def rows(self, values: F32) -> View:
        """Rows in a buffer whose padding is NaN."""
        view = View.room(*values.shape)
        padded = np.full((len(values), view.ld), np.nan, np.float32)
        padded[:, : values.shape[1]] = values
        self.put(view.buffer, padded)
        return view

    def get(self, buffer: Buffer, shape: tuple[int, ...], dtype: type = np.float32) -> NDArray:
        out = np.empty(shape, dtype)
        self.launcher.download(out, buffer.address, wait=True)
        return out

    def read(self, view: View, n: int, width: int) -> F32:
        return self.get(view.buffer, (n, view.ld))[:, :width]

    def step(self, batch: Batch) -> None:
        a, n = self.arrays, batch.n_tokens
        self.put(a.step, np.array([n, batch.n_rows, batch.n_seqs, batch.n_generated], np.int32))
        tables = np.zeros((self.options.max_seqs, a.page_stride), np.int32)
        tables[:, : batch.page_tables.shape[1]] = batch.page_tables
        for buffer, values in (
            (a.positions, batch.positions), (a.seqs, batch.seqs), (a.spans, batch.spans), (a.page_tables, tables),
            (a.rows, batch.rows),
        ):  # fmt: skip
            self.put(buffer, values)
        self.shape = shape_of(batch, self.options)

    def run(self, *launches: Launch) -> None:
        for launch in launches:
            for buffer in (*launch.reads, *launch.writes):
                self.place(buffer)
            if launch.when(self.shape):
                (kernel,) = self.launcher.kernels(launch.source, launch.defines, [launch.name])
                args = launch.args(self.shape)
                self.launcher.launch(kernel, launch.grid(self.shape), launch.block, args, launch.shared)

    def place(self, buffer: Buffer) -> None:
        if not buffer.address:
            buffer.address = self.launcher.allocate(buffer.n_bytes)
            self.buffers.append(buffer)

    def close(self) -> None:
        self.launcher.synchronize()
        for buffer in self.buffers:
            self.launcher.release(buffer.address)  # emulated, it finds what was written outside


@pytest.fixture(params=cuda_tools.DEVICES)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    b = Bench(request.param())
    yield b
    b.close()


def of_tokens(bench: Bench, n: int, rows: list[int] | None = None) -> None:
    batch = Batch(bench.options)
    batch.add([0] * n, 0, range(8), rows or "none")
    bench.step(batch)


def decoded_q8(bench: Bench, q8: Q8, n: int, width: int) -> F32:
    """What the rows stand for; their padding must be zero and their sums right."""
    values = bench.get(q8.values, (n, q8.ld), np.int8).astype(np.float32)
    assert not values[:, width:].any()
    sums = bench.get(q8.sums, (n, q8.ld // 32, 2), np.int16)
    assert (sums == values.reshape(n, -1, 2, 16).sum(axis=-1)).all()
    scales = bench.get(q8.scales, (n, q8.ld // 32))
    return (values.reshape(n, -1, 32) * scales[..., None]).reshape(n, q8.ld)[:, :width]


def decoded_half(bench: Bench, half: Half, n: int, width: int) -> F32:
    values = bench.get(half.values, (n, half.ld), np.float16).astype(np.float32)
    assert not values[:, width:].any()
    return values[:, :width] * bench.get(half.factors, (n,))[:, None]


def all_forms(n: int, width: int) -> Forms:
    return Forms(View.room(n, width), Q8.room(n, width), Half.room(n, width))


def check_forms(bench: Bench, y: Forms, wanted: F32, limit: float = 1e-12) -> None:
    """float32 is right, and whichever of the other forms the step writes."""
    n, width = wanted.shape
    assert y.f32 is not None
    assert nmse(bench.read(y.f32, n, width), wanted) <= limit
    written = y.at(n)
    if written.q8:
        # Half a step of the block is the most that a value is away, and what float32 computes otherwise.
        error, size = (
            np.pad(np.abs(part), ((0, 0), (0, -width % 32))).reshape(n, -1, 32).max(axis=-1)
            for part in (decoded_q8(bench, written.q8, n, width) - wanted, wanted)
        )
        assert (error <= size * (0.5 / 127) + max(1e-6, limit**0.5) * size.max()).all()
    if written.half:
        assert nmse(decoded_half(bench, written.half, n, width), wanted) <= 1e-6


@pytest.mark.parametrize("n", [3, 11])
@pytest.mark.parametrize(("group", "columns"), [(200, 200), (40, 40), (40, 200), (200, 0)])
@pytest.mark.parametrize("centred", [False, True])
def test_norm(bench: Bench, n: int, group: int, columns: int, centred: bool) -> None:
    width = 200
    of_tokens(bench, n)
    x, weight, bias, y = 2.0 + normal(n, width, std=3.0), normal(columns), normal(columns), all_forms(n, width)
    step = group if columns > group else 0
    vectors = [(bench.vector(v) if columns else None, step) for v in (weight, bias)]
    bench.run(
        elementwise.norm(
            bench.arrays, TOKENS, x=bench.rows(x), y=y, weight=vectors[0], bias=vectors[1] if centred else (None, 0),
            centred=centred, eps=1e-5, group=group, width=width,
        )
    )  # fmt: skip
    w, b = (v if columns else None for v in (weight, bias))
    check_forms(bench, y, layer_norm(x, w, b, 1e-5, group) if centred else rms_norm(x, w, 1e-5, group))


def test_norm_of_picked_sums(bench: Bench) -> None:
    of_tokens(bench, 9)
    x, z, rows = normal(9, 96), normal(9, 96), np.array([1, 4, 8])
    y, total, selects_rows = all_forms(3, 96), View.room(3, 96), np.array([3], np.int32)
    bench.put(bench.arrays.rows, rows.astype(np.int32))
    bench.put(bench.arrays.step, selects_rows)
    bench.shape = replace(bench.shape, n_tokens=4)
    bench.run(
        elementwise.norm(
            bench.arrays, TOKENS, x=bench.rows(x), z=bench.rows(z), total=total, y=y, weight=(None, 0),
            eps=1e-6, group=96, width=96, selects_rows=True,
        )
    )  # fmt: skip
    wanted = x[rows] + z[rows]
    assert (bench.read(total, 3, 96) == wanted).all()
    check_forms(bench, y, rms_norm(wanted, None, 1e-6, 96))


@pytest.mark.parametrize("kind", ["copy", "add", "scale", "softcap"])
def test_elementwise(bench: Bench, kind: str) -> None:
    of_tokens(bench, 5)
    x, z, y = normal(5, 70, std=20.0), normal(5, 70), View.room(5, 70)
    wanted = {"copy": x, "add": x + z, "scale": x * np.float32(1.75), "softcap": soft_cap(x, 30.0)}[kind]
    other = bench.rows(z) if kind == "add" else None
    factor = {"scale": 1.75, "softcap": 30.0}.get(kind, 0.0)
    bench.run(
        elementwise.elementwise(kind, bench.arrays, TOKENS, x=bench.rows(x), z=other, y=y, factor=factor, width=70)
    )
    assert nmse(bench.read(y, 5, 70), wanted) <= 1e-13


@pytest.mark.parametrize("start", [7, 16])
def test_copy_of_some_columns_of_picked_rows(bench: Bench, start: int) -> None:
    of_tokens(bench, 5)
    bench.put(bench.arrays.rows, np.array([4, 2, 1, 0, 3], np.int32))
    x, y = normal(5, 70), View.room(5, 33)
    whole = bench.rows(x)
    part = View(whole.buffer, whole.ld, 4 * start)
    bench.run(elementwise.elementwise("copy", bench.arrays, TOKENS, x=part, y=y, width=33, selects_rows=True))
    assert (bench.read(y, 5, 33) == x[[4, 2, 1, 0, 3], start : start + 33]).all()


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_gated(bench: Bench, act: str) -> None:
    for n in (2, 10) if act == "silu" else (2,):
        of_tokens(bench, n)
        gate, up, y = normal(n, 130, std=8.0), normal(n, 130, std=4.0), all_forms(n, 130)
        gate[0, :4] = -300, 300, -30, 0
        gate = np.minimum(gate, 4) if act == "exp" else gate
        limit = 3.0 if act in LIMITED else 0.0
        bench.run(*elementwise.gated(bench.arrays, TOKENS, act, bench.rows(gate), bench.rows(up), y, 130, limit=limit))
        check_forms(bench, y, gated_activation(gate, up, act, limit))


@pytest.mark.parametrize("columns", [1, 5, 26])
def test_gates_of_columns(bench: Bench, columns: int) -> None:
    of_tokens(bench, 10)
    gate, up, y = normal(10, 130 // columns, std=8.0), normal(10, 130, std=4.0), all_forms(10, 130)
    launches = elementwise.gated(
        bench.arrays, TOKENS, "sigmoid", bench.rows(gate), bench.rows(up), y, 130, spread=columns
    )
    bench.run(*launches)
    check_forms(bench, y, gated_activation(gate, up, "sigmoid"))


@pytest.mark.parametrize("act", UNARY)
def test_activation(bench: Bench, act: str) -> None:
    for n in (2, 10) if act == "relu2" else (2,):
        of_tokens(bench, n)
        parameters = (1.25, 0.75, 0.5, -1e-6) if act == "xielu" else ()
        x, y = normal(n, 130, std=1.0 if parameters else 8.0), all_forms(n, 130)
        x[0, :4] = (-3, 3, -1, 0) if parameters else (-80, 80, -30, 0)
        x = np.minimum(x, 4) if act == "exp" else x
        bench.run(*elementwise.activation(bench.arrays, TOKENS, act, bench.rows(x), y, 130, parameters))
        wanted = xielu(x, *parameters) if parameters else gated_activation(x, np.ones_like(x), act)
        check_forms(bench, y, wanted)


@pytest.mark.parametrize("columns", [1, 5, 130])
@pytest.mark.parametrize("kind", ["mul weight", "add weight"])
def test_weights(bench: Bench, kind: str, columns: int) -> None:
    of_tokens(bench, 3)
    x, weight, y = normal(3, 130), normal(130 // columns), all_forms(3, 130)
    vector = bench.vector(weight)
    bench.run(*elementwise.with_weight(kind, bench.arrays, TOKENS, bench.rows(x), vector, y, 130, columns))
    spread = np.repeat(weight, columns)
    check_forms(bench, y, x * spread if kind == "mul weight" else x + spread)


# --- rotation


@pytest.mark.parametrize(("n_pairs", "interleaved"), [(16, False), (16, True), (5, True), (5, False)])
def test_rope(bench: Bench, n_pairs: int, interleaved: bool) -> None:
    """Angles up to 131072 radians, as positions of long contexts have, are as exact as small ones."""
    x, y = normal(12, 3 * 32), View.room(12, 96)
    batch = Batch(replace(OPTIONS, n_pages=1))
    batch.add([0] * 12, 0, [0])
    batch.positions[:12] = [0, 1, 2, 3, 100, 4095, 8191, 32768, 65535, 99999, 131071, 131072]
    bench.step(batch)
    inv_freq = tuple(float(np.float32(10000.0 ** (-i / n_pairs))) for i in range(n_pairs))
    op = Rope(
        out=Value(1, 96), layer=0, x=Value(0, 96), head_dim=32, inv_freq=inv_freq, mscale=1.2, interleaved=interleaved
    )
    bench.run(kv.rope(bench.arrays, op, bench.rows(x), y, bench.vector(np.array(inv_freq, np.float32))))
    wanted = reference_rope(x, batch.positions[:12], 32, inv_freq, 1.2, interleaved)
    assert np.abs(bench.read(y, 12, 96) - wanted).max() <= 2e-6


# --- attention


@dataclass(frozen=True)
class Case:
    """One attention op and what it stands on."""

    dtype: str = "f16"
    n_heads: int = 4
    n_kv: int = 2
    head: int = 32
    v_head: int = 32
    window: int = 0
    reach: str = "causal"
    softcap: float = 0.0
    slopes: bool = False
    far: int = 0
    """Distance up to which biases differ; 0: none."""
    sinks: bool = False
    page: int = 16
    turned: bool = False
    """Queries and keys are normed and rotated on the way."""

    @property
    def op(self) -> Attention:
        q, k, v = self.n_heads * self.head, self.n_kv * self.head, self.n_kv * self.v_head
        return Attention(
            out=Value(3, self.n_heads * self.v_head), layer=0, q=Value(0, q), k=Value(1, k), v=Value(2, v), cache=0,
            n_heads=self.n_heads, n_kv_heads=self.n_kv, head_dim=self.head, v_head_dim=self.v_head,
            scale=self.head**-0.5, window=self.window, reach=self.reach, softcap=self.softcap,
            slopes=alibi_slopes(self.n_heads, 8.0) if self.slopes else (),
            biases=Weight("biases") if self.far else None,
        )  # fmt: skip

    @property
    def options(self) -> ExecutionOptions:
        return replace(OPTIONS, kv_dtype=self.dtype, page_size=self.page, n_pages=384 // self.page)

    @property
    def rope(self) -> Rope | None:
        if not self.turned:
            return None
        inv_freq = tuple(float(np.float32(1000.0 ** (-4 * i / self.head))) for i in range(self.head // 4))
        return Rope(out=Value(0, 0), layer=0, x=Value(0, 0), head_dim=self.head, inv_freq=inv_freq, mscale=1.1)


def stored(x: F32, dtype: str, size: int) -> F32:
    """What a cache makes of heads of `size` columns."""
    if dtype == "f32":
        return x
    if dtype == "f16":
        return x.astype(np.float16).astype(np.float32)
    heads = x.reshape(-1, size)
    padded = np.zeros((len(heads), -(-size // 32) * 32), np.float32)
    padded[:, :size] = heads
    groups = padded.reshape(-1, 32)
    scale = (np.abs(groups).max(axis=1, keepdims=True) / np.float32(127)).astype(np.float16).astype(np.float32)
    values = np.clip(np.rint(groups / np.where(scale > 0, scale, 1)), -127, 127) * scale
    return values.reshape(padded.shape)[:, :size].reshape(x.shape)


class Attending:
    """An attention op on a device beside the same on the reference: steps of some tokens of some sequences."""

    def __init__(self, bench: Bench, case: Case) -> None:
        self.bench, self.case, self.op = bench, case, case.op
        self.cache = Buffer(kv.cache_bytes(self.op, case.options), outside=True)
        bench.put(self.cache, np.zeros(self.cache.n_bytes, np.uint8))
        self.sinks = normal(case.n_heads) if case.sinks else None
        self.sink_buffer = bench.vector(self.sinks) if self.sinks is not None else None
        slopes = np.array(self.op.slopes, np.float32)
        self.biases = normal(case.n_heads, 2 * case.far + 1) if case.far else None
        by_distance = slopes if self.biases is None else self.biases
        self.slope_buffer = bench.vector(by_distance) if by_distance.size else None
        self.norms = [normal(case.head, std=0.2) + 1, normal(case.head, std=0.2) + 1]
        self.norm_buffers = [kv.HeadNorm(bench.vector(w), 0, 1e-5) for w in self.norms]
        self.keys: dict[int, F32] = {}
        self.values: dict[int, F32] = {}
        pages, few = RANDOM.permutation(case.options.n_pages), 32 // case.page
        self.pages = [pages[: -2 * few], pages[-2 * few : -few], pages[-few:]]

    def step(self, lengths: dict[int, int], forms: Forms | None = None, attend: bool = True) -> tuple[F32, F32]:
        """The next tokens of sequences, as many as `lengths` says: (what the device gives, what the reference does)."""
        c, b, op = self.case, self.bench, self.op
        batch = Batch(c.options)
        for s, n in lengths.items():
            batch.add([0] * n, len(self.keys.get(s, ())), self.pages[s], "none")
        b.step(batch)
        n = batch.n_tokens
        q, k, v = normal(n, op.q.width), normal(n, op.k.width), normal(n, op.v.width)
        q_view = b.rows(q)
        turned = View.room(n, op.q.width) if c.turned else q_view
        norms = dict(zip(("q_norm", "k_norm"), self.norm_buffers, strict=True)) if c.turned else {}
        inv_freq = b.vector(np.array(c.rope.inv_freq, np.float32)) if c.rope else None
        b.run(
            kv.store(
                b.arrays, op, c.options, self.cache, q=q_view, k=b.rows(k), v=b.rows(v), rotated_q=turned, rope=c.rope,
                inv_freq=inv_freq, **norms,
            )
        )  # fmt: skip
        if c.rope:
            at = batch.positions[:n]
            q, k = (reference_rope(rms_norm(x, w, 1e-5, c.head), at, c.head, c.rope.inv_freq, c.rope.mscale)
                    for x, w in zip((q, k), self.norms, strict=True))  # fmt: skip
        k, v = stored(k, c.dtype, c.head), stored(v, c.dtype, c.v_head)
        wanted = self._reference(batch, q, k, v)
        y = forms or Forms(View.room(n, op.out.width))
        if attend:
            facts = Facts(b.launcher.n_sm, b.launcher.max_shared)
            vectors = self.slope_buffer, self.sink_buffer
            b.run(*attention.attend(b.arrays, op, c.options, self.cache, turned, y, *vectors, facts))
            assert y.f32 is not None
            return b.read(y.f32, n, op.out.width), wanted
        return wanted, wanted

    def _reference(self, batch: Batch, q: F32, k: F32, v: F32) -> F32:
        c, out = self.case, []
        for s, (first, n) in zip(self._order(batch), batch.spans[: batch.n_seqs], strict=True):
            rows = slice(first, first + n)
            position = int(batch.positions[first])
            self.keys[s] = np.concatenate([self.keys.get(s, k[:0]), k[rows]])
            self.values[s] = np.concatenate([self.values.get(s, v[:0]), v[rows]])
            out.append(
                reference_attention(
                    q[rows].reshape(n, c.n_heads, c.head), self.keys[s].reshape(-1, c.n_kv, c.head),
                    self.values[s].reshape(-1, c.n_kv, c.v_head), position, 0, scale=self.op.scale, window=c.window,
                    reach=c.reach, softcap=c.softcap, slopes=self.op.slopes, biases=self.biases,
                    sinks=self.sinks,
                )
            )  # fmt: skip
        return np.concatenate(out)

    def _order(self, batch: Batch) -> list[int]:
        return [next(s for s, p in enumerate(self.pages) if p[0] == t[0]) for t in batch.page_tables[: batch.n_seqs]]


CASES = {
    "plain": Case(turned=True, page=32),
    "one_kv_odd_size": Case(n_heads=3, n_kv=1, head=21, v_head=23),
    "many_heads": Case(n_heads=12, n_kv=1, head=16, v_head=16, sinks=True),
    "everything": Case(head=80, v_head=48, window=40, softcap=3.0, sinks=True, n_heads=2, n_kv=2),
    "chunked": Case(window=40, reach="chunked", n_heads=3, n_kv=1),
    "slopes": Case(n_heads=6, slopes=True),
    "whole": Case(reach="whole", window=60, slopes=True),
    "biases": Case(n_heads=6, far=20),
    "biases_whole": Case(reach="whole", far=200),
    "wide": Case(n_heads=2, n_kv=1, head=256, v_head=256),
    "bytes": Case(dtype="q8_0", head=64, v_head=96, n_heads=2, n_kv=1, turned=True),
    "bytes_odd_size": Case(dtype="q8_0", head=80, v_head=16, window=33, sinks=True),
    "floats": Case(dtype="f32", turned=True),
    "floats_biases": Case(dtype="f32", far=20),
    "floats_whole": Case(dtype="f32", reach="whole", window=60, slopes=True),
    "floats_everything": Case(dtype="f32", head=48, v_head=20, window=40, softcap=3.0, sinks=True),
}


@pytest.mark.parametrize("name", CASES)
def test_attention(bench: Bench, name: str) -> None:
    """A context that several blocks share, beside short ones: with a prompt, some tokens, one token each."""
    case = CASES[name]
    bench.options, bench.arrays = case.options, StepArrays.of(case.options)
    a = Attending(bench, case)
    for n in (64, 64, 64, 64, 40):
        a.step({0: n}, attend=False)
    limit = 1e-11 if case.dtype == "f32" else 1e-6
    for lengths in ({0: 1, 1: 3, 2: 21}, {0: 1, 2: 1}, {0: 2, 1: 9}):
        got, wanted = a.step(lengths)
        assert np.isfinite(got).all()
        assert nmse(got, wanted) <= limit, lengths


@pytest.mark.parametrize("lengths", [{0: 3, 1: 1}, {0: 20}, {0: 20, 1: 2}, {0: 6, 1: 6}])
def test_attention_in_forms(bench: Bench, lengths: dict[int, int]) -> None:
    """Few tokens and many, a prompt and none."""
    case = Case()
    bench.options, bench.arrays = case.options, StepArrays.of(case.options)
    y = all_forms(sum(lengths.values()), case.op.out.width)
    _, wanted = Attending(bench, case).step(lengths, y)
    check_forms(bench, y, wanted, 1e-6)


def test_what_is_refused() -> None:
    with pytest.raises(BackendError, match="up to 256 columns"):
        kv.cache_bytes(Case(head=264).op, OPTIONS)
    with pytest.raises(BackendError, match="multiple of 16"):
        kv.cache_bytes(Case().op, replace(OPTIONS, page_size=8))


# --- compiled for cards

FACTS = {"sm_90": Facts(132, 227 << 10), "sm_120": Facts(170, 99 << 10)}
HOT = [("sm_90", "f16", 256), ("sm_120", "f16", 256), ("sm_90", "q8_0", 128)]
"""What is used much and not among the models of test_cuda_compile.py."""


@pytest.mark.parametrize(("arch", "dtype", "head"), HOT)
def test_registers_hold_everything(arch: str, dtype: str, head: int) -> None:
    """No kernel of attention spills registers, and each fits the card."""
    nvrtc = compiler.Nvrtc(pytest.importorskip("cupy").cuda.nvrtc)
    case = Case(dtype=dtype, n_heads=8, n_kv=2, head=head, v_head=head, page=32)
    width = case.op.out.width
    launches = attention.attend(
        StepArrays.of(case.options), case.op, case.options, Buffer(0), View.room(64, width), all_forms(64, width), None,
        None, FACTS[arch],
    )  # fmt: skip
    for launch in {x.key: x for x in launches if x.source.startswith("attention")}.values():
        log = nvrtc.compile(compiler.source(launch.source), launch.defines, arch).log
        assert "0 bytes spill stores, 0 bytes spill loads" in log, log
        assert launch.shared <= FACTS[arch].max_shared
