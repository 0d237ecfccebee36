"""Models split over devices: whatever is where, logits are those of the whole model on one of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import oracle
import pytest
from oracle import OPTIONS, Model, Shape, Step, nmse, transformer

from pyllm import backends
from pyllm.backends import placement, split
from pyllm.backends.base import Backend, Batch, Candidates, Crossing, DeviceInfo, Executable, HostCrossing, Probe
from pyllm.config import ExecutionOptions, PlacementOptions
from pyllm.errors import BackendError, ClosedError, OutOfMemoryError
from pyllm.gguf.tensor import TensorInfo
from pyllm.program import Program, Value

SMALL = Shape(n_layers=4, n_embd=64, n_heads=2, n_kv_heads=1, head_dim=32, n_rot=32, n_ff=96, n_vocab=80)
SHAPES = {
    "qwen": replace(SMALL, bias=True, tied=True, n_heads=4, n_kv_heads=2),
    "gemma": replace(SMALL, qk_norm=True, window=9, softcap=20.0, logit_cap=10.0, act="gelu"),
    "llama": replace(SMALL, interleaved=True, n_rot=16),
    "oss": replace(SMALL, sinks=True, window=6, bias=True, n_experts=4, act="swiglu_oai"),
    "experts": replace(SMALL, n_experts=5, n_used=3),
}
EXACT = 1e-7
"""NMSE with float weights, as for whole models."""
QUANTIZED = 4e-4
"""With others, against the cpu: both may quantize activations to 8 bits, each in its own way, and random weights do
not forgive as trained ones do. (The cpu alone is 1e-4 from the reference here.)"""


def device(backend: str) -> DeviceInfo:
    return backends.get(backend).devices()[0]


@pytest.fixture(params=[name for name in backends.names() if name != "cpu"])
def other(request: pytest.FixtureRequest) -> DeviceInfo:
    """A device beside the cpu: of the reference backend, of every GPU backend that is there."""
    oracle.need("cpu")
    oracle.need(request.param)
    return device(request.param)


def compiled(
    model: Model,
    tensors: Mapping[str, TensorInfo],
    devices: Sequence[DeviceInfo],
    options: ExecutionOptions = OPTIONS,
    **choice: Any,
) -> Executable:
    """The model, as much as is asked for of it on the devices after the first."""
    names = tuple(d.name for d in devices[1:])
    wanted = PlacementOptions(devices=names, **choice)
    return split.compile_placed(model.program, tensors, wanted, devices, options)[0]


def placed(
    model: Model, tensors: Mapping[str, TensorInfo], devices: Sequence[DeviceInfo], device_of_op: Sequence[str]
) -> Executable:
    return split.compile(placement.cut(model.program, device_of_op), tensors, OPTIONS, devices)


def check(
    exe: Executable,
    model: Model,
    tensors: Mapping[str, TensorInfo],
    limit: float,
    alone: str = "reference",
    batches: Sequence[Sequence[Step]] | None = None,
    want: Any = "logits",
) -> None:
    """It gives what one backend alone gives, for each batch in turn; then it is closed."""
    batches = oracle.ragged_batches(80) if batches is None else batches
    whole = oracle.compiled(alone, model, tensors)
    try:
        for batch in batches:
            got, wanted = oracle.run(exe, batch, want), oracle.run(whole, batch, want)
            assert got.shape == wanted.shape
            assert not wanted.size or nmse(got, wanted) <= limit
    finally:
        exe.close()
        whole.close()


@pytest.mark.parametrize("n", [0, 1, 2, 3, 5, "all"])
def test_layers(other: DeviceInfo, n: int | str) -> None:
    model = transformer(SMALL)
    tensors = model.tensors()
    exe = compiled(model, tensors, [device("cpu"), other], n_gpu_layers=n)
    assert isinstance(exe, split.SplitExecutable) == (n in (1, 2, 3))
    check(exe, model, tensors, EXACT)


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(other: DeviceInfo, shape: str) -> None:
    model = transformer(SHAPES[shape])
    tensors = model.tensors()
    check(compiled(model, tensors, [device("cpu"), other], n_gpu_layers=3), model, tensors, EXACT)


ODD: dict[str, tuple[Shape, dict[str, Any]]] = {
    "kv_on_cpu": (SMALL, {"kv_offload": False}),
    "kv_on_cpu_norms": (SHAPES["gemma"], {"kv_offload": False}),
    "experts_on_cpu": (SHAPES["experts"], {"n_cpu_moe": 99}),
    "some_experts_on_cpu": (SHAPES["oss"], {"n_cpu_moe": 2}),
    "experts_by_pattern": (SHAPES["oss"], {"override_tensors": ((r"blk\.\d+\.ffn_.*_exps\.", "cpu"),)}),
    "ffn_on_cpu": (SMALL, {"override_tensors": ((r"blk\.[12]\.ffn", "cpu"),)}),
    "values_on_cpu": (SMALL, {"override_tensors": ((r"attn_v", "cpu"), (r"output\.weight", "cpu"))}),
    "a_norm_on_cpu": (SHAPES["gemma"], {"override_tensors": ((r"blk\.1\.attn_q_norm|ffn_norm", "CPU"),)}),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_places(other: DeviceInfo, name: str) -> None:
    shape, choice = ODD[name]
    model = transformer(shape)
    tensors = model.tensors()
    exe = compiled(model, tensors, [device("cpu"), other], n_gpu_layers="all", **choice)
    assert isinstance(exe, split.SplitExecutable)
    check(exe, model, tensors, EXACT)


@pytest.mark.parametrize("shape", ["gemma", "oss"])
@pytest.mark.parametrize("seed", range(3))
def test_any_op_anywhere(other: DeviceInfo, shape: str, seed: int) -> None:
    """Every op on a device drawn for it: a value of any kind crosses, any fusion may be cut apart."""
    model = transformer(replace(SHAPES[shape], n_layers=2))
    tensors = model.tensors()
    devices = [device("cpu"), other]
    drawn = np.random.default_rng(seed).integers(0, 2, len(model.program.ops))
    check(placed(model, tensors, devices, [devices[i].name for i in drawn]), model, tensors, EXACT)


def test_three_devices(other: DeviceInfo) -> None:
    model = transformer(SHAPES["experts"])
    tensors = model.tensors()
    devices = list(dict.fromkeys([device("cpu"), other, device("reference")]))
    rng = np.random.default_rng(5)
    drawn = rng.integers(0, len(devices), len(model.program.ops))
    check(placed(model, tensors, devices, [devices[i].name for i in drawn]), model, tensors, EXACT)


@pytest.mark.parametrize(("fmt", "limit"), [("F16", 1e-5), ("Q8_0", QUANTIZED), ("Q4_K", QUANTIZED)])
def test_formats(other: DeviceInfo, fmt: str, limit: float) -> None:
    model = transformer(Shape(n_layers=2, n_ff=256, n_vocab=80))
    tensors = model.tensors(fmt)
    check(compiled(model, tensors, [device("cpu"), other], n_gpu_layers=2), model, tensors, limit, "cpu")


def test_quantized_anywhere(other: DeviceInfo) -> None:
    """Forms of activations that one device keeps beside float32 do not survive a crossing; nothing may rely on it."""
    model = transformer(Shape(n_layers=2, n_ff=256, n_vocab=80, n_experts=3))
    tensors = model.tensors("Q4_K") | {n: t for n, t in model.tensors().items() if "gate_inp" in n}
    devices = [device("cpu"), other]
    drawn = np.random.default_rng(7).integers(0, 2, len(model.program.ops))
    exe = placed(model, tensors, devices, [devices[i].name for i in drawn])
    check(exe, model, tensors, QUANTIZED, "cpu")


def test_hidden(other: DeviceInfo) -> None:
    """Also where the head, which is not run then, is elsewhere."""
    model = transformer(SMALL)
    tensors = model.tensors()
    exe = compiled(
        model, tensors, [device("cpu"), other], n_gpu_layers="all", override_tensors=(("^output.weight", "cpu"),)
    )
    check(exe, model, tensors, EXACT, want="hidden")
    check(compiled(model, tensors, [device("cpu"), other], n_gpu_layers=2), model, tensors, EXACT, want="hidden")


def test_no_rows_wanted(other: DeviceInfo) -> None:
    model = transformer(SMALL)
    tensors, tokens = model.tensors(), oracle.random_tokens(20, 80)
    batches = [[Step(tokens[:19], 0, [4, 2], "none")], [Step(tokens[19:], 19, [4, 2])]]
    exe = compiled(model, tensors, [device("cpu"), other], n_gpu_layers=3)
    check(exe, model, tensors, EXACT, batches=batches)


def test_shared_pages(other: DeviceInfo) -> None:
    model = transformer(SMALL)
    tensors, tokens = model.tensors(), oracle.random_tokens(50, 80)
    prefix = Step(tokens[:32], 0, [6, 3], "last")
    tails = [Step(tokens[32:40], 32, [6, 3, 10]), Step(tokens[30:50], 32, [6, 3, 1, 12])]
    exe = compiled(model, tensors, [device("cpu"), other], n_gpu_layers=2)
    check(exe, model, tensors, EXACT, batches=[[prefix], tails])


def test_generated_tokens_and_many_rows() -> None:
    """A part takes the ways for few tokens and for many that the whole model takes, token for token."""
    oracle.need("cpu")
    model = transformer(Shape(n_layers=3, n_ff=256, n_vocab=80))
    tensors, options = model.tensors("Q4_K"), replace(OPTIONS, many_rows=True)
    devices = [device("cpu"), device("reference")]
    names = ["cpu"] * (len(model.program.ops) - 1) + ["reference"]
    plan = placement.cut(model.program, names)
    batch = Batch(options)
    batch.add([3], 0, [1], generated=True)
    batch.add(oracle.random_tokens(40, 80), 0, [2, 3, 4], "all")
    parts, whole = split.compile(plan, tensors, options, devices), oracle.compiled("cpu", model, tensors, options)
    got, wanted = parts.run(batch, "hidden"), whole.run(batch, "hidden")
    np.testing.assert_array_equal(got, wanted)
    parts.close()
    whole.close()


def test_memory() -> None:
    oracle.need("cpu")
    model = transformer(SMALL)
    tensors, devices = model.tensors(), [device("cpu"), device("reference")]
    exe = compiled(model, tensors, devices, n_gpu_layers=3)
    assert isinstance(exe, split.SplitExecutable)
    parts = exe.memory_by_device()
    assert parts["cpu"]["kv"] == parts["reference"]["kv"] > 0
    assert exe.memory()["kv"] == 2 * parts["cpu"]["kv"]
    exe.close()
    exe.close()
    assert not any(exe.memory().values())
    with pytest.raises(ClosedError):
        exe.run(Batch(OPTIONS))


@pytest.mark.parametrize("n", [0, 2])
def test_memory_needed_is_what_is_taken(n: int) -> None:
    oracle.need("cpu")
    model = transformer(replace(SHAPES["oss"], n_layers=3))
    tensors, devices = model.tensors("F16"), [device("cpu"), device("reference")]
    wanted = PlacementOptions(n_gpu_layers=n, devices=("reference",))
    plan = placement.cut(model.program, placement.place(model.program, tensors, wanted, devices, OPTIONS).device_of_op)
    exe = split.compile(plan, tensors, OPTIONS, devices)
    taken = exe.memory_by_device()["cpu"] if isinstance(exe, split.SplitExecutable) else exe.memory()
    assert taken == placement.memory_needed(plan, tensors, OPTIONS, devices)["cpu"]
    exe.close()


def test_replace_and_importance() -> None:
    oracle.need("cpu")
    model = transformer(replace(SMALL, tied=True))
    tensors, other = model.tensors(), model.tensors(seed=1)
    options = replace(OPTIONS, collect_importance=True)
    devices = [device("cpu"), device("reference")]
    exe = compiled(model, tensors, devices, options, n_gpu_layers=3)
    whole = oracle.compiled("reference", model, tensors, options)
    changed = {name: other[name] for name in ("blk.0.attn_q.weight", "blk.3.ffn_down.weight", "token_embd.weight")}
    batch = oracle.ragged_batches(80)[0]
    for e in (exe, whole):
        oracle.run(e, batch)
        e.replace(changed)
    assert nmse(oracle.run(exe, batch), oracle.run(whole, batch)) <= EXACT
    got, wanted = exe.importance(), whole.importance()
    assert got.keys() == wanted.keys()
    for name, (sums, counts) in wanted.items():
        np.testing.assert_allclose(got[name][0], sums, rtol=1e-4)
        np.testing.assert_array_equal(got[name][1], counts)
    with pytest.raises(BackendError, match="no matrix"):
        exe.replace({"blk.9.x": other["blk.0.attn_q.weight"]})
    exe.close()
    whole.close()


# --- what happens when a device fails


class Fragile(Backend):
    """The reference backend, with a device that can run out of memory, fail in a step, and be waited for."""

    name = "fragile"

    def __init__(self) -> None:
        self.capacity = 1 << 40
        self.fail: BaseException | None = None
        self.alive = 0
        self.hosted = 0
        self.given: list[int] = []

    def probe(self) -> Probe:
        return Probe(self.name, True)

    def devices(self) -> list[DeviceInfo]:
        return [DeviceInfo("gpu0", self.name, 0, "", 1 << 40, None, True)]

    def compile(
        self, program: Program, weights: Mapping[str, TensorInfo], options: ExecutionOptions
    ) -> FragileExecutable:
        if self.memory_needed(program, weights, options)["weights"] > self.capacity:
            raise OutOfMemoryError("The card is full.")
        self.alive += 1
        return FragileExecutable(self, backends.get("reference").compile(program, weights, options))


class FragileExecutable(Executable):
    n_candidates = 3

    def __init__(self, owner: Fragile, inner: Executable) -> None:
        self.owner, self.inner, self.program, self.options = owner, inner, inner.program, inner.options

    def run_stage(self, stage: int, batch: Batch, given: Sequence[Crossing], wanted: Sequence[Value]) -> list[Crossing]:
        self.owner.given += [v.id for v in self.program.stages[stage].receives]
        out = self.inner.run_stage(stage, batch, given, wanted)
        if self.owner.fail:
            raise self.owner.fail
        return [Waited(self.owner, crossing) for crossing in out]

    def candidates(self, logits: Crossing) -> Candidates:
        assert isinstance(logits, Waited)
        rows = logits.inner.host()
        ids = np.argsort(-rows, axis=1, kind="stable")[:, :3].astype(np.int32)
        return Candidates(ids, np.take_along_axis(rows, ids, 1), np.log(np.exp(rows).sum(axis=1)))

    def interrupt(self) -> None:
        self.inner.interrupt()

    def memory(self) -> dict[str, int]:
        return self.inner.memory()

    def close(self) -> None:
        self.owner.alive -= 1
        self.inner.close()


class Waited(Crossing):
    def __init__(self, owner: Fragile, inner: Crossing) -> None:
        self.owner, self.inner = owner, inner

    def host(self) -> Any:
        self.owner.hosted += 1
        return self.inner.host()


@pytest.fixture
def fragile(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fragile]:
    oracle.need("cpu")
    backend, get = Fragile(), backends.get
    monkeypatch.setattr(backends, "get", lambda name: backend if name == "fragile" else get(name))
    yield backend
    assert backend.alive == 0, "something was left open"


def on_gpu(
    fragile: Fragile, model: Model, tensors: Mapping[str, TensorInfo], **choice: Any
) -> tuple[Executable, placement.Placement]:
    devices = [*fragile.devices(), device("cpu")]
    return split.compile_placed(model.program, tensors, PlacementOptions(**choice), devices, OPTIONS)


def test_a_failing_device_leaves_the_others(fragile: Fragile) -> None:
    model = transformer(SMALL)
    tensors = model.tensors()
    exe, _ = on_gpu(fragile, model, tensors, n_gpu_layers=3)
    fragile.fail = BackendError("the card is gone")
    with pytest.raises(BackendError, match="the card is gone"):
        oracle.run(exe, oracle.ragged_batches(80)[0])
    fragile.fail = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        oracle.run(exe, oracle.ragged_batches(80)[0])
    fragile.fail = None
    check(exe, model, tensors, EXACT)


def test_a_value_crosses_once(fragile: Fragile) -> None:
    """Of one part's values no other part asks twice, and nobody for what it does not need."""
    model = transformer(SHAPES["experts"])
    exe, _ = on_gpu(fragile, model, model.tensors(), n_gpu_layers="all", n_cpu_moe=99)
    oracle.run(exe, oracle.ragged_batches(80)[0])
    assert len(fragile.given) == len(set(fragile.given)) == SMALL.n_layers
    assert fragile.hosted == 2 * SMALL.n_layers + 1  # experts' input and router, and the logits
    exe.close()


def test_candidates_of_the_last_device(fragile: Fragile) -> None:
    model = transformer(SMALL)
    exe, _ = on_gpu(fragile, model, model.tensors(), n_gpu_layers=3)
    batch = Batch(OPTIONS)
    batch.add([1, 2, 3], 0, [0])
    logits = exe.run(batch).copy()
    fragile.hosted = 0
    found = exe.run(batch, "candidates")
    assert exe.n_candidates == 3
    assert fragile.hosted == 0, "the logits were fetched"
    np.testing.assert_array_equal(found.ids[0], np.argsort(-logits[0])[:3])
    exe.close()


def test_no_candidates_from_the_cpu(fragile: Fragile) -> None:
    model = transformer(SMALL)
    exe, _ = on_gpu(fragile, model, model.tensors(), n_gpu_layers="all", override_tensors=(("^output.w", "cpu"),))
    assert exe.n_candidates == 0
    batch = Batch(OPTIONS)
    batch.add([1], 0, [0])
    with pytest.raises(BackendError, match="no candidates"):
        exe.run(batch, "candidates")
    exe.close()


def test_auto_takes_fewer_layers_when_a_load_fails(fragile: Fragile) -> None:
    model = transformer(replace(SMALL, n_layers=8))
    tensors = model.tensors()
    whole = sum(t.n_bytes for t in tensors.values())
    fragile.capacity = whole // 2
    exe, found = on_gpu(fragile, model, tensors, n_gpu_layers="auto")
    assert 3 <= found.n_gpu_layers <= 5
    check(exe, model, tensors, EXACT)


def test_a_fixed_number_of_layers_that_does_not_fit(fragile: Fragile) -> None:
    model = transformer(replace(SMALL, n_layers=8))
    fragile.capacity = 1
    with pytest.raises(OutOfMemoryError, match=r"gpu0: The card is full\. 5 layers on GPUs should fit"):
        on_gpu(fragile, model, model.tensors(), n_gpu_layers=6)


def test_out_of_memory_on_the_cpu_is_not_retried(fragile: Fragile, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def full(*_: object) -> None:
        tried.append("cpu")
        raise OutOfMemoryError("no memory")

    model = transformer(SMALL)
    monkeypatch.setattr(type(backends.get("cpu")), "compile", full)
    with pytest.raises(OutOfMemoryError, match="cpu: no memory"):
        on_gpu(fragile, model, model.tensors(), n_gpu_layers="auto", n_cpu_moe=1, override_tensors=(("embd", "cpu"),))
    assert tried == ["cpu"]


def test_interrupts_between_stages(fragile: Fragile, monkeypatch: pytest.MonkeyPatch) -> None:
    model = transformer(SMALL)
    exe, _ = on_gpu(fragile, model, model.tensors(), n_gpu_layers=3)
    exe.interrupt()  # nothing runs
    batch = Batch(OPTIONS)
    batch.add([1, 2], 0, [0])
    assert isinstance(exe, split.SplitExecutable)
    cpu = exe.parts["cpu"]
    run = cpu.run_stage

    def interrupted(*arguments: Any) -> list[Crossing]:
        out = run(*arguments)
        exe.interrupt()
        return out

    monkeypatch.setattr(cpu, "run_stage", interrupted)
    with pytest.raises(KeyboardInterrupt):
        exe.run(batch)
    monkeypatch.setattr(cpu, "run_stage", run)
    assert np.isfinite(exe.run(batch)).all()
    exe.close()


def test_progress_is_one(fragile: Fragile) -> None:
    model = transformer(SMALL)
    seen: list[float] = []
    options = replace(OPTIONS, progress=lambda what, share: seen.append(share))
    exe, _ = split.compile_placed(
        model.program,
        model.tensors(),
        PlacementOptions(n_gpu_layers=3),
        [*fragile.devices(), device("cpu")],
        options,
    )
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(1.0)
    exe.close()


def test_host_crossing() -> None:
    rows = np.ones((2, 3), np.float32)
    assert HostCrossing(rows).host() is rows
