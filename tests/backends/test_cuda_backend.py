"""The host side of the CUDA backend on emulated devices: graphs, shapes of steps, memory, errors, interrupts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations

import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from oracle import OPTIONS, Shape, Step, assert_close, transformer

from pyllm import backends
from pyllm.backends import placement, split
from pyllm.backends.base import Batch
from pyllm.backends.cuda import launcher as launchers
from pyllm.backends.cuda.executable import CUDAExecutable
from pyllm.backends.cuda.graphs import shape_of
from pyllm.backends.cuda.launch import Launch, fill, struct
from pyllm.backends.cuda.memory import Work
from pyllm.backends.plan.memory import Buffer
from pyllm.config import ExecutionOptions
from pyllm.errors import BackendError, ClosedError, OutOfMemoryError, RequestError
from pyllm.testing.cuda.emulated import EmulatedLauncher, open_emulated

TINY = Shape(n_layers=1, n_embd=64, n_heads=2, n_kv_heads=1, head_dim=32, n_rot=32, n_ff=64, n_vocab=64)
SMALL = replace(OPTIONS, max_tokens=32, max_rows=32)


class Devices:
    """Emulated devices that are remembered, so that a test can ask what they hold and what they were asked to do."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, memory: int = 1 << 28) -> None:
        self.opened: list[EmulatedLauncher] = []
        self.memory = memory
        self.n_launches = 0
        devices, launch = self, EmulatedLauncher.launch

        def open_launcher(index: int = 0) -> EmulatedLauncher:
            devices.opened.append(open_emulated(index, devices.memory))
            return devices.opened[-1]

        def counted(self: EmulatedLauncher, *args: object, **options: object) -> None:
            devices.n_launches += 1
            launch(self, *args, **options)  # type: ignore[arg-type]

        monkeypatch.setenv("PYLLM_CUDA_EMULATOR", "2")
        monkeypatch.setattr(launchers, "open_launcher", open_launcher)
        monkeypatch.setattr(EmulatedLauncher, "launch", counted)

    @property
    def bytes_held(self) -> int:
        return sum(total - free for free, total in (d.memory() for d in self.opened))


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> Devices:
    oracle.need("cuda")
    return Devices(monkeypatch)


@pytest.fixture
def exe(devices: Devices) -> Iterator[CUDAExecutable]:
    model = transformer(TINY)
    executable = oracle.compiled("cuda", model, model.tensors("Q8_0"), SMALL)
    assert isinstance(executable, CUDAExecutable)
    yield executable
    executable.close()


def test_graphs_are_used_again(devices: Devices, exe: CUDAExecutable) -> None:
    """A decoding step of a known shape launches no kernel from Python, and computes what the first one did."""
    oracle.run(exe, [Step([1, 2, 3], 0, [4], "none")])
    results, launched = [], []
    for position in (3, 3, 3, 4, 5):
        before = devices.n_launches
        results.append(oracle.run(exe, [Step([7], position, [4])]))
        launched.append(devices.n_launches - before)
    assert launched[0] > 0
    assert launched[1] == launched[0]  # captured
    assert launched[2:] == [0, 0, 0]
    assert exe.n_graphs == 1
    np.testing.assert_array_equal(results[0], results[2])
    assert not np.array_equal(results[0], results[3])


def _shape(options: ExecutionOptions, steps: list[Step], generated: bool = False) -> tuple[int, ...]:
    batch = Batch(options)
    for s in steps:
        batch.add(s.tokens, s.position, s.pages, s.want, generated)
    shape = shape_of(batch, options)
    return shape.n_tokens, shape.n_rows, shape.n_seqs, shape.n_generated, shape.max_context, shape.max_span


def test_shapes_of_steps() -> None:
    options = replace(OPTIONS, n_pages=64)  # 1024 positions
    pages = list(range(64))
    assert _shape(options, [Step([1], 0, pages)], generated=True) == (1, 1, 1, 1, 256, 1)
    assert _shape(options, [Step([1] * 5, 300, pages, "last")]) == (8, 1, 1, 0, 512, 8)
    assert _shape(options, [Step([1] * 70, 900, pages, "none"), Step([1], 0, pages)]) == (96, 1, 2, 0, 1024, 96)
    assert _shape(options, [Step([1], p, pages) for p in (1, 2, 600)], generated=True) == (4, 4, 4, 4, 1024, 1)


def test_unknown_shapes_agree(exe: CUDAExecutable) -> None:
    """Steps of every number of tokens, in one graph or another, give what the reference gives."""
    tokens = oracle.random_tokens(31, TINY.n_vocab)
    batches, at = [], 0
    for n in (1, 2, 3, 5, 8, 9, 2, 1):
        batches.append([Step(tokens[at : at + n], at, [3, 1], "last")])
        at += n
    model = transformer(TINY)
    assert_close(oracle.run_both("cuda", model, "Q8_0", batches, SMALL), 2e-3)


def test_other_batches_are_refused(exe: CUDAExecutable) -> None:
    with pytest.raises(RequestError, match="larger steps"):
        exe.run(Batch(OPTIONS))
    with pytest.raises(RequestError, match="pages of 32"):
        exe.run(Batch(replace(SMALL, page_size=32)))


def test_close_gives_everything_back(devices: Devices) -> None:
    model = transformer(TINY)
    executable = oracle.compiled("cuda", model, model.tensors("Q4_0"), SMALL)
    oracle.run(executable, [Step([1, 2], 0, [0])])
    held = executable.memory()
    assert devices.bytes_held == held["weights"] + held["kv"] + held["work"] > 0
    executable.close()
    executable.close()
    assert devices.bytes_held == 0
    with pytest.raises(ClosedError):
        oracle.run(executable, [Step([1], 0, [0])])


def test_what_is_needed_is_what_is_taken(devices: Devices) -> None:
    model, backend = transformer(TINY), backends.get("cuda")
    tensors = model.tensors("Q5_0")
    needed = backend.memory_needed(model.program, tensors, SMALL)
    assert devices.bytes_held == 0
    executable = backend.compile(model.program, tensors, SMALL)
    taken = executable.memory()
    executable.close()
    assert {k: needed[k] for k in taken} == taken


def test_too_little_memory(devices: Devices) -> None:
    devices.memory = 1 << 16
    model = transformer(TINY)
    with pytest.raises(OutOfMemoryError, match="free; this needs"):
        oracle.compiled("cuda", model, model.tensors("Q8_0"), SMALL)
    assert devices.bytes_held == 0


def test_failure_at_load_gives_memory_back(devices: Devices, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pyllm.backends.cuda.weights.matrices.pack", fail)
    model = transformer(TINY)
    with pytest.raises(KeyboardInterrupt):
        oracle.compiled("cuda", model, model.tensors("Q8_0"), SMALL)
    assert devices.opened
    assert devices.bytes_held == 0


def test_missing_tensor(devices: Devices) -> None:
    model = transformer(TINY)
    tensors = model.tensors("Q8_0")
    del tensors["blk.0.ffn_up.weight"]
    with pytest.raises(BackendError, match=r"blk\.0\.ffn_up\.weight"):
        oracle.compiled("cuda", model, tensors, SMALL)
    assert devices.bytes_held == 0


def test_what_it_cannot_is_said_at_once(devices: Devices) -> None:
    model = transformer(TINY)
    refused = [
        ({"collect_importance": True}, "importance"),
        ({"max_tokens": 1 << 16}, "up to 65535 tokens"),
    ]
    for change, message in refused:
        with pytest.raises(BackendError, match=message):
            oracle.compiled("cuda", model, model.tensors(), replace(SMALL, **change))
    assert not devices.opened


def test_replaced_weights(exe: CUDAExecutable) -> None:
    """Graphs go on with the new values, which lie where the old ones did."""
    model, step = transformer(TINY), Step([5, 6, 7], 0, [2])
    before = [oracle.run(exe, [step]) for _ in range(3)][-1]
    matrices = {name: t for name, t in model.tensors("Q8_0", seed=1).items() if len(t.shape) > 1}
    exe.replace(matrices)
    fresh = oracle.compiled("cuda", model, {**model.tensors("Q8_0"), **matrices}, SMALL)
    wanted = oracle.run(fresh, [step])
    fresh.close()
    got = oracle.run(exe, [step])
    assert not np.array_equal(got, before)
    np.testing.assert_array_equal(got, wanted)


def test_candidates(exe: CUDAExecutable) -> None:
    """The same tokens and logits as among all logits."""
    batch = Batch(SMALL)
    batch.add([5, 6, 7], 0, [2], "all")
    logits = exe.run(batch).copy()
    found = exe.run(batch, "candidates")
    order = np.argsort(-logits, axis=1, kind="stable")[:, : exe.n_candidates]
    np.testing.assert_array_equal(found.ids, order)
    np.testing.assert_array_equal(found.logits, np.take_along_axis(logits, order, axis=1))
    np.testing.assert_allclose(found.log_sum, np.log(np.exp(logits.astype(np.float64)).sum(axis=1)), rtol=1e-5)


def test_interrupt(devices: Devices, exe: CUDAExecutable, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that is interrupted ends with KeyboardInterrupt, and the next one is right."""
    step = Step([5, 6, 7], 0, [2])
    wanted = oracle.run(exe, [step])
    exe.interrupt()  # nothing runs: nothing happens
    np.testing.assert_array_equal(oracle.run(exe, [step]), wanted)
    with monkeypatch.context() as patch:
        patch.setattr(EmulatedLauncher, "upload", lambda *_, **__: exe.interrupt())
        with pytest.raises(KeyboardInterrupt):
            oracle.run(exe, [step])
    np.testing.assert_array_equal(oracle.run(exe, [step]), wanted)


def test_device_that_fails_in_a_step(exe: CUDAExecutable, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Step([5, 6, 7], 0, [2])
    wanted = oracle.run(exe, [step])

    def fail(*_: object, **__: object) -> None:
        raise OutOfMemoryError("the device has no memory left")

    with monkeypatch.context() as patch:
        patch.setattr(EmulatedLauncher, "download", fail)
        with pytest.raises(OutOfMemoryError):
            oracle.run(exe, [step])
    np.testing.assert_array_equal(oracle.run(exe, [step]), wanted)


def test_two_devices(devices: Devices, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers on two devices: values go from one to the other without coming to the host, and KV stays where it is."""
    model = transformer(replace(TINY, n_layers=2))
    tensors, copies = model.tensors(), []
    copy_peer = EmulatedLauncher.copy_peer

    def counted(self: EmulatedLauncher, *args: object) -> None:
        copies.append(self.index)
        copy_peer(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(EmulatedLauncher, "copy_peer", counted)
    where = [f"cuda{int(op.layer > 0)}" for op in model.program.ops]
    infos = backends.get("cuda").devices()
    exe = split.compile(placement.cut(model.program, where), tensors, SMALL, infos)
    whole = oracle.compiled("reference", model, tensors, SMALL)
    try:
        for step in ([Step([3, 1, 4, 1, 5], 0, [2])], [Step([9], 5, [2])], [Step([2], 6, [2])]):
            got, wanted = oracle.run(exe, step), oracle.run(whole, step)
            assert oracle.nmse(got, wanted) <= 1e-7
        assert copies == [1, 1, 1]
        assert len(devices.opened) == 2
    finally:
        exe.close()
        whole.close()
    assert devices.bytes_held == 0


def test_profile(exe: CUDAExecutable) -> None:
    batch = Batch(SMALL)
    batch.add([1, 2], 0, [0])
    times = exe.profile(batch)
    assert any("attention" in label for label, _ in times)
    assert all(seconds >= 0 for _, seconds in times)


def test_empty_step(exe: CUDAExecutable) -> None:
    assert exe.run(Batch(SMALL)).shape == (0, TINY.n_vocab)


# --- where buffers lie

_NOTHING = struct(x="ptr")


def _launch(reads: list[Buffer], writes: list[Buffer]) -> Launch:
    def args(_: object) -> NDArray[np.void]:
        return fill(_NOTHING, x=None)

    return Launch("x.cu", "x", lambda _: (1, 1, 1), 32, args, "x", reads=tuple(reads), writes=tuple(writes))


@given(st.data())
def test_buffers_do_not_overlap(data: st.DataObject) -> None:
    """Buffers that are alive at the same launch have no byte in common, and memory ends where the last of them ends."""
    buffers = [
        Buffer(n, keep=data.draw(st.booleans()))
        for n in data.draw(st.lists(st.integers(1, 2000), min_size=1, max_size=12))
    ]
    work, used = Work(), {id(b): (b, set[int]()) for b in buffers}
    for at in range(data.draw(st.integers(1, 12))):
        chosen = data.draw(st.lists(st.sampled_from(buffers), max_size=4, unique_by=id))
        half = len(chosen) // 2
        work.add(_launch(chosen[:half], chosen[half:]), of_output_rows=False)
        for b in chosen:
            used[id(b)][1].add(at)
    total = work.arrange()
    placed = [(b, ats) for b, ats in used.values() if ats]
    assert all(b.address % 256 == 0 and b.address + b.n_bytes <= total for b, _ in placed)
    for (a, at_a), (b, at_b) in combinations(placed, 2):
        alive_a = (0, 1 << 50) if a.keep else (min(at_a), max(at_a))
        alive_b = (0, 1 << 50) if b.keep else (min(at_b), max(at_b))
        if alive_a[0] <= alive_b[1] and alive_b[0] <= alive_a[1]:
            assert a.address + a.n_bytes <= b.address or b.address + b.n_bytes <= a.address
