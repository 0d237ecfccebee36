"""CUDA kernels of routing and of the largest logits against the reference's functions and plain numpy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import cuda_tools
import numpy as np
import oracle
import pytest
from numpy.typing import NDArray
from oracle import Shape, transformer

from pyllm.backends.base import Batch
from pyllm.backends.cuda import candidates, experts
from pyllm.backends.cuda.launch import TOKENS, Launch, StepArrays, StepShape, View
from pyllm.backends.cuda.launcher import Launcher
from pyllm.backends.plan.memory import Buffer
from pyllm.backends.reference.ops.experts import route as reference_route
from pyllm.config import ExecutionOptions
from pyllm.program import Value
from pyllm.program.ops.experts import MixtureOfExperts

F32 = NDArray[np.float32]
RANDOM = np.random.default_rng(8)


class Bench:
    """Runs launches on a device: gives their buffers memory, fills some, reads others."""

    def __init__(self, launcher: Launcher) -> None:
        self.launcher = launcher
        self.buffers: list[Buffer] = []
        self.arrays = StepArrays.of(ExecutionOptions(n_pages=1))

    def put(self, buffer: Buffer, values: NDArray) -> Buffer:
        assert values.nbytes <= buffer.n_bytes
        self._place(buffer)
        self.launcher.upload(buffer.address, np.ascontiguousarray(values), wait=True)
        return buffer

    def rows(self, values: F32) -> View:
        """Rows in a buffer whose padding is NaN."""
        view = View.room(*values.shape)
        padded = np.full((len(values), view.ld), np.nan, np.float32)
        padded[:, : values.shape[1]] = values
        self.put(view.buffer, padded)
        return view

    def vector(self, values: NDArray) -> Buffer:
        return self.put(Buffer(values.nbytes), values)

    def get(self, buffer: Buffer, shape: tuple[int, ...], dtype: type = np.float32) -> NDArray:
        out = np.empty(shape, dtype)
        self.launcher.download(out, buffer.address, wait=True)
        return out

    def run(self, launches: list[Launch], n: int, most: int) -> None:
        """A step of n tokens and rows whose shape has `most`."""
        shape = StepShape(most, most, 1, 0, 256, most)
        self.put(self.arrays.step, np.array([n, n, 1, 0], np.int32))
        for launch in launches:
            for buffer in (*launch.reads, *launch.writes):
                self._place(buffer)
            if launch.when(shape):
                (kernel,) = self.launcher.kernels(launch.source, launch.defines, [launch.name])
                args = launch.args(shape)
                self.launcher.launch(kernel, launch.grid(shape), launch.block, args, launch.shared)

    def _place(self, buffer: Buffer) -> None:
        if not buffer.address:
            buffer.address = self.launcher.allocate(buffer.n_bytes)
            self.buffers.append(buffer)


@pytest.fixture(params=cuda_tools.DEVICES)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    b = Bench(request.param())
    yield b
    b.launcher.synchronize()
    for buffer in b.buffers:
        b.launcher.release(buffer.address)  # emulated, it finds what was written outside


# --- the largest logits


def logits_of(kind: str, n_rows: int, n_vocab: int) -> F32:
    x = (RANDOM.normal(size=(n_rows, n_vocab)) * 3).astype(np.float32)
    if kind == "ties":
        x = np.round(x)
    if kind == "constant":
        x[:] = -1.5
    if kind == "ascending":
        x.sort()
    if kind == "masked":
        x[:, RANDOM.random(n_vocab) < 0.95] = -np.inf
        x[:, 0], x[:, -1] = 0.0, -0.0
    if kind == "in one place":
        x[:, n_vocab // 3 : n_vocab // 3 + 200] += 20
    if kind == "in one thread":
        x[:, 2::1024] += 20
    return x


KINDS = ["usual", "ties", "constant", "ascending", "masked", "in one place", "in one thread"]


def find(bench: Bench, logits: F32) -> tuple[NDArray[np.int32], F32, F32]:
    n_rows, n_vocab = logits.shape
    n = candidates.n_candidates(n_vocab)
    launches, out = candidates.launches(bench.rows(logits), n_vocab, bench.arrays, n_rows)
    bench.run(launches, n_rows, n_rows + 1)
    found = candidates.read(bench.get(out, (n_rows, candidates.stride(n)), np.int32), n)
    return found.ids, found.logits, found.log_sum


@pytest.mark.parametrize(
    ("kind", "n_vocab"), [(k, n) for k in KINDS for n in (300, 4097, 9000)] + [("usual", 1), ("usual", 151936)]
)
def test_candidates(bench: Bench, kind: str, n_vocab: int) -> None:
    logits = logits_of(kind, 2, n_vocab)
    ids, values, log_sum = find(bench, logits)
    expected = np.argsort(-logits, axis=1, kind="stable")[:, : min(128, n_vocab)]
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_array_equal(values, np.take_along_axis(logits, expected, axis=1))
    exact = np.log(np.exp(logits.astype(np.float64)).sum(axis=1))
    np.testing.assert_allclose(log_sum, exact, rtol=1e-6, atol=2e-6)


def test_candidates_of_hostile_logits(bench: Bench) -> None:
    logits = logits_of("usual", 4, 5000)
    logits[0, 7::9] = np.nan
    logits[1, 4500] = np.inf
    logits[2] = -np.inf
    logits[3] = np.where(np.arange(5000) == 4711, 3e38, -3e38)
    ids, values, log_sum = find(bench, logits)
    known = np.where(np.isnan(logits), -np.inf, logits)
    expected = np.argsort(-known, axis=1, kind="stable")[:, :128]
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_array_equal(values, np.take_along_axis(known, expected, axis=1))
    assert np.isnan(log_sum[:2]).all()
    assert log_sum[2] == -math.inf
    assert log_sum[3] == np.float32(3e38)


def test_no_candidates_of_a_vocabulary_beyond_the_kernels() -> None:
    assert candidates.n_candidates(1 << 20) == 128
    assert candidates.n_candidates((1 << 20) + 1) == 0
    assert candidates.n_candidates(100) == 100


@pytest.mark.parametrize("n_rows", [1, 3])
def test_candidates_of_a_step(monkeypatch: pytest.MonkeyPatch, n_rows: int) -> None:
    """What an executable gives is of the logits that it gives, by launches and by a graph."""
    cuda_tools.emulator()  # or skip
    monkeypatch.setenv("PYLLM_CUDA_EMULATOR", "1")
    model = transformer(Shape(n_layers=1, n_vocab=4500, n_embd=64, n_ff=64, n_heads=2, n_kv_heads=1, n_rot=32))
    exe = oracle.compiled("cuda", model, model.tensors("Q8_0"), replace(oracle.OPTIONS, max_tokens=16, max_rows=4))
    batch = Batch(exe.options)
    batch.add([5, 700, 41, 3], 0, [4], [1, 2, 3][-n_rows:])
    logits = exe.run(batch).copy()
    for _ in range(3):
        found = exe.run(batch, "candidates")
        assert found.ids.shape == (n_rows, exe.n_candidates) == (n_rows, 128)
        np.testing.assert_array_equal(found.ids, np.argsort(-logits, axis=1, kind="stable")[:, :128])
        np.testing.assert_array_equal(found.logits, np.take_along_axis(logits, found.ids, axis=1))
        np.testing.assert_allclose(found.log_sum, np.log(np.exp(logits.astype(np.float64)).sum(axis=1)), rtol=1e-6)
    nothing = Batch(exe.options)
    nothing.add([5, 700], 0, [4], "none")
    assert exe.run(nothing, "candidates").ids.shape == (0, 128)
    exe.close()


# --- experts


def mixture(n_experts: int, n_used: int, width: int = 70, **options: object) -> MixtureOfExperts:
    given = {"gating": "softmax", "gate": "g", "up": "u", "down": "d", "n_ff": 64, **options}
    return MixtureOfExperts(
        out=Value(2, width), layer=0, x=Value(0, width), router=Value(1, n_experts), n_experts=n_experts,
        n_used=n_used, **given,  # type: ignore[arg-type]
    )  # fmt: skip


def routed(
    bench: Bench, op: MixtureOfExperts, logits: F32, bias: F32 | None = None
) -> tuple[experts.Routing, NDArray[np.int32], F32]:
    n = len(logits)
    r = experts.Routing.room(op, TOKENS, n)
    launches = experts.route(bench.arrays, bench.rows(logits), None if bias is None else bench.vector(bias), r)
    bench.run(launches, n, n + 3)
    return r, bench.get(r.chosen, (n, op.n_used), np.int32), bench.get(r.weights, (n, op.n_used))


@pytest.mark.parametrize("gating", ["softmax", "sigmoid", "softmax_chosen"])
@pytest.mark.parametrize(
    ("n_experts", "n_used", "biased", "normalize"),
    [(4, 2, False, False), (33, 33, True, True), (128, 8, True, False), (512, 32, False, True), (60, 4, False, True)],
)
def test_route(bench: Bench, gating: str, n_experts: int, n_used: int, biased: bool, normalize: bool) -> None:
    op = mixture(n_experts, n_used, gating=gating, normalize=normalize, weight_scale=1.75)
    logits = (RANDOM.normal(size=(7, n_experts)) * 2).astype(np.float32)
    bias = RANDOM.normal(size=n_experts).astype(np.float32) if biased else None
    _, chosen, weights = routed(bench, op, logits, bias)
    expected, expected_weights = reference_route(
        logits, n_used, gating=gating, normalize=normalize, weight_scale=1.75, choice_bias=bias
    )
    np.testing.assert_array_equal(chosen, expected)
    np.testing.assert_allclose(weights, expected_weights, rtol=3e-6)


@pytest.mark.parametrize(("n_experts", "n_groups", "n_used"), [(8, 4, 2), (96, 32, 5), (256, 8, 4), (66, 3, 2)])
def test_experts_of_the_best_groups(bench: Bench, n_experts: int, n_groups: int, n_used: int) -> None:
    op = mixture(n_experts, 3, gating="sigmoid", n_groups=n_groups, n_groups_used=n_used)
    logits, bias = RANDOM.normal(size=(7, n_experts)).astype(np.float32), RANDOM.normal(size=n_experts)
    _, chosen, _ = routed(bench, op, logits, bias.astype(np.float32))
    expected, _ = reference_route(
        logits, 3, gating="sigmoid", choice_bias=bias.astype(np.float32), n_groups=n_groups, n_groups_used=n_used
    )
    np.testing.assert_array_equal(chosen, expected)


def test_equal_scores_go_to_the_lower_number(bench: Bench) -> None:
    logits = np.zeros((3, 70), np.float32)
    logits[1, [69, 35, 3]] = 1.0
    logits[2] = np.nan
    _, chosen, _ = routed(bench, mixture(70, 5), logits)
    assert chosen.tolist() == [[0, 1, 2, 3, 4], [3, 35, 69, 0, 1], [0, 1, 2, 3, 4]]


@pytest.mark.parametrize(("n_tokens", "n_experts", "n_used"), [(9, 4, 4), (40, 128, 8), (300, 5, 2)])
def test_slots_by_expert(bench: Bench, n_tokens: int, n_experts: int, n_used: int) -> None:
    logits = RANDOM.normal(size=(n_tokens, n_experts)).astype(np.float32)
    logits[:, 1] -= 100  # an expert that nobody wants, mostly
    r, chosen, _ = routed(bench, mixture(n_experts, n_used), logits)
    n = n_tokens * n_used
    assert bench.get(r.n_slots, (1,), np.int32) == n
    offsets, slots = bench.get(r.offsets, (n_experts + 1,), np.int32), bench.get(r.slots, (n,), np.int32)
    counts = np.bincount(chosen.ravel(), minlength=n_experts)
    np.testing.assert_array_equal(offsets, [0, *np.cumsum(counts)])
    for e in range(n_experts):
        np.testing.assert_array_equal(np.sort(slots[offsets[e] : offsets[e + 1]]), np.flatnonzero(chosen.ravel() == e))


@pytest.mark.parametrize("with_residual", [False, True])
def test_combine(bench: Bench, with_residual: bool) -> None:
    op, n = mixture(8, 3, width=300), 5
    logits, y, residual = (RANDOM.normal(size=s).astype(np.float32) for s in ((n, 8), (n * 3, 300), (n, 300)))
    r, _, weights = routed(bench, op, logits)
    out = View.room(n, 300)
    bench.run(
        [experts.combine(bench.arrays, bench.rows(y), r, out, bench.rows(residual) if with_residual else None)],
        n,
        n + 1,
    )
    expected = (weights[:, :, None] * y.reshape(n, 3, 300)).sum(axis=1) + (residual if with_residual else 0)
    np.testing.assert_allclose(bench.get(out.buffer, (n, out.ld))[:, :300], expected, rtol=1e-5, atol=1e-6)
