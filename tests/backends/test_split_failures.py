"""What split models do when a device fails, is full or is interrupted, and what crosses between devices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import oracle
import pytest
from oracle import OPTIONS, Model, transformer

from pyllm import backends
from pyllm.backends import placement, split
from pyllm.backends.base import Backend, Batch, Crossing, DeviceInfo, Executable, HostCrossing, Probe
from pyllm.config import ExecutionOptions, PlacementOptions
from pyllm.errors import BackendError, OutOfMemoryError
from pyllm.gguf.tensor import TensorInfo
from pyllm.program import Program, Value
from pyllm.sampling.top_logits import TopLogits
from pyllm.testing.splitting import EXACT, SHAPES, SMALL, check, device


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
            raise OutOfMemoryError("the card is full")
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

    def candidates(self, logits: Crossing) -> TopLogits:
        assert isinstance(logits, Waited)
        rows = logits.inner.host()
        ids = np.argsort(-rows, axis=1, kind="stable")[:, :3].astype(np.int32)
        return TopLogits(ids, np.take_along_axis(rows, ids, 1), np.log(np.exp(rows).sum(axis=1)))

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
    with pytest.raises(OutOfMemoryError, match=r"gpu0: the card is full; 5 layers on GPUs \(-ngl 5\) should fit"):
        on_gpu(fragile, model, model.tensors(), n_gpu_layers=6)
    with pytest.raises(OutOfMemoryError, match=r"1 layer on GPUs \(-ngl 1\) should fit"):
        on_gpu(fragile, model, model.tensors(), n_gpu_layers=2)


def test_no_number_of_layers_fits(fragile: Fragile) -> None:
    """Advice would send more to the CPU than it has room for."""
    model = transformer(SMALL)
    fragile.capacity = 1
    options = replace(OPTIONS, n_pages=1 << 40)
    with pytest.raises(OutOfMemoryError, match=r"full; with fewer layers on GPUs, the CPU's part does not fit$"):
        split.compile_placed(
            model.program,
            model.tensors(),
            PlacementOptions(n_gpu_layers="all"),
            [*fragile.devices(), device("cpu")],
            options,
        )


def test_what_the_cpu_cannot_hold_is_refused_before_a_gpu_is_filled(
    fragile: Fragile, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = transformer(SMALL)
    filled: list[str] = []
    monkeypatch.setattr(Fragile, "compile", lambda *_: filled.append("gpu0"))
    with pytest.raises(OutOfMemoryError, match=r"cpu: .* are needed .*, .* are free"):
        split.compile_placed(
            model.program,
            model.tensors(),
            PlacementOptions(n_gpu_layers=2),
            [*fragile.devices(), device("cpu")],
            replace(OPTIONS, n_pages=1 << 40),
        )
    assert not filled


def test_a_card_alone_that_is_full(fragile: Fragile) -> None:
    model = transformer(SMALL)
    fragile.capacity = 1
    for n in ("auto", "all"):
        with pytest.raises(OutOfMemoryError, match=r"^the card is full$"):
            split.compile_placed(
                model.program, model.tensors(), PlacementOptions(n_gpu_layers=n), fragile.devices(), OPTIONS
            )


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
    seen: dict[str, list[float]] = {}
    options = replace(OPTIONS, progress=lambda what, share: seen.setdefault(what, []).append(share))
    exe, _ = split.compile_placed(
        model.program,
        model.tensors(),
        PlacementOptions(n_gpu_layers=3),
        [*fragile.devices(), device("cpu")],
        options,
    )
    assert all(shares == sorted(shares) for shares in seen.values())
    assert seen["packing weights"][-1] == pytest.approx(1.0)
    exe.close()


def test_host_crossing() -> None:
    rows = np.ones((2, 3), np.float32)
    assert HostCrossing(rows).host() is rows
