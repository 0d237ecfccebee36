# ruff: noqa: E402 (what is imported needs mlx)
"""mlx's steps: halves as on a GPU, compiled functions, what attention reads, stages, memory, interrupts and errors.

What ops compute is tested in test_ops.py.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import oracle
import pytest
from oracle import OPTIONS, Step, assert_close, nmse, transformer

mx = pytest.importorskip("mlx.core")

from mlx_tools import executable, needs_compiler, traced

from pyllm import backends
from pyllm.backends.base import Batch, HostCrossing
from pyllm.backends.mlx import attention, metal
from pyllm.backends.mlx.errors import translated
from pyllm.backends.mlx.executable import MLXExecutable
from pyllm.backends.mlx.lowering import Lowering
from pyllm.errors import BackendError, ClosedError, OutOfMemoryError
from pyllm.program import Stage
from pyllm.program.ops.attention import Attention, Sight
from pyllm.program.ops.embed import Embed
from pyllm.program.ops.linear import Linear
from pyllm.program.ops.select import SelectRows


@pytest.mark.skipif(metal.available(), reason="counts what attention takes without Metal's kernels")
def test_work_memory_is_what_a_step_takes() -> None:
    """The last step of a prompt that fills the context, by mlx's own count."""
    model, n = transformer(oracle.Shape()), 512
    options = replace(OPTIONS, n_pages=96, max_tokens=n, kv_dtype="f16")
    exe, tokens = executable(model, model.tensors("Q8_0"), options), oracle.random_tokens(3 * n, 64)
    for start in range(0, len(tokens), n):
        mx.clear_cache()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        oracle.run(exe, [Step(tokens[start : start + n], start, list(range(96)), want="last")])
        taken = mx.get_peak_memory() - before
    assert exe.lowering.sizes()["work"] == pytest.approx(taken, rel=0.25)
    exe.close()


@pytest.fixture
def model() -> oracle.Model:
    return transformer(oracle.Shape(**SMALL, window=9))


SMALL = {"n_embd": 128, "n_ff": 256, "head_dim": 32, "n_rot": 32}


@pytest.mark.parametrize(
    ("shape", "fmt"),
    [(oracle.Shape(**SMALL), "Q5_1"), (oracle.Shape(n_ff=256), "Q6_K"), (oracle.Shape(**SMALL), "F16"),
     (oracle.Shape(**SMALL, sinks=True, window=6, softcap=9.0, n_experts=4, n_layers=1), "Q4_0")],
    ids=["affine", "coded", "floats", "experts"],
)  # fmt: skip
def test_a_model_in_halves(shape: oracle.Shape, fmt: str) -> None:
    """As on a GPU: products and attention in halves, over a cache of halves."""
    m = transformer(shape)
    tensors = m.tensors(fmt)
    if shape.n_experts:  # a router must choose alike
        tensors |= {n: t for n, t in m.tensors("F32").items() if "gate_inp" in n}
    exe = executable(m, tensors, replace(OPTIONS, kv_dtype="f16"), half=True)
    reference = oracle.compiled("reference", m, tensors)
    assert_close([(oracle.run(exe, b), oracle.run(reference, b)) for b in oracle.ragged_batches(160)[:2]], 1e-3)


@pytest.fixture
def bare() -> oracle.Model:
    """Two layers of attention, one of a window. The fewer kinds of ops, the fewer programs g++ compiles."""
    b = oracle.Builder()
    x = b(Embed(table=b.t("token_embd.weight", 160, 64)))
    for b.layer in range(2):
        q, k, v = (
            b(Linear(x=x, weight=b.t(f"{n}.{b.layer}", rows, 64))) for n, rows in (("q", 64), ("k", 32), ("v", 32))
        )
        window, sizes = 0 if b.layer else 9, {"head_dim": 32, "v_head_dim": 32}
        x = b(Attention(q=q, k=k, v=v, n_heads=2, n_kv_heads=1, scale=0.2, window=window, **sizes))
    x = b(SelectRows(x=x))
    return b.model(x, b(Linear(x=x, weight=b.t("output.weight", 160, 64))), 2)


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are compiled however long they take on a busy machine."""
    monkeypatch.setattr("pyllm.backends.mlx.executable._TOO_LONG", 60.0)


@needs_compiler
@pytest.mark.usefixtures("patience")
def test_decoding_is_compiled_once_in_a_while(bare: oracle.Model) -> None:
    """A hundred steps of a token: the same logits as op by op, and a function for 64 keys, one for more, one for the
    time in which windows hide nothing."""
    tensors, tokens, pages = bare.tensors("Q8_0"), oracle.random_tokens(100, 160), [2, 3, 4, 5, 6, 7, 8]
    compiled, plain = executable(bare, tensors, compiled=True), executable(bare, tensors)
    for exe in (compiled, plain):
        oracle.run(exe, [Step(tokens[:3], 0, pages)])
    for at in range(3, 100):
        step = [Step([tokens[at]], at, pages)]
        assert_close([(oracle.run(compiled, step), oracle.run(plain, step))], 1e-9)
    assert (compiled.n_traces, plain.n_traces) == (3, 0)
    both = [Step([1], 100, pages), Step([2], 0, [0])]
    for _ in range(2):
        assert_close([(oracle.run(compiled, both), oracle.run(plain, both))], 1e-9)
    assert compiled.n_traces == 4


@pytest.mark.usefixtures("patience")
def test_every_op_can_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """In formats of all kinds; nothing is computed, so that no program need be compiled by g++."""
    shapes = (
        oracle.Shape(qk_norm=True, bias=True, window=6, logit_cap=30.0),
        oracle.Shape(n_layers=1, sinks=True, softcap=9.0, n_experts=4, act="swiglu_oai"),
    )
    for m in map(transformer, shapes):
        exe = executable(m, oracle.mixed_tensors(m), half=True, compiled=True)
        oracle.run(exe, step := [Step([1, 2], 0, [0]), Step([3], 0, [1])])
        with monkeypatch.context() as patched:
            patched.setattr(mx, "eval", traced)
            with pytest.raises(BackendError, match="traced"):
                oracle.run(exe, step)
        assert exe.n_traces == 1


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=needs_compiler)])
def test_a_step_copies_no_cache(bare: oracle.Model, compiled: bool) -> None:
    options = replace(OPTIONS, n_pages=16384)
    exe = executable(bare, bare.tensors(), options, compiled=compiled)
    pages = list(range(7, 14))
    for at in range(2):
        oracle.run(exe, [Step([5], at, pages)])
    mx.reset_peak_memory()
    held = mx.get_active_memory()
    oracle.run(exe, [Step([6], 2, pages)])
    if not compiled:
        oracle.run(exe, [Step([6], 2, pages), Step([6], 2, [40, 39])])
    assert exe.n_traces == compiled
    assert mx.get_peak_memory() - held < exe.memory()["kv"] / 8


@pytest.mark.parametrize(
    ("reach", "window"), [("causal", 0), ("causal", 9), ("chunked", 16), ("whole", 0), ("whole", 9)]
)
@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("pages", [[12, 13, 14, 15], [14, 2, 3, 9]], ids=["run", "scattered"])
def test_what_attention_reads(reach: str, window: int, rounded: bool, pages: list[int]) -> None:
    """Each position that a token sees is read from its own slot, once; no other is seen."""
    batch = Batch(replace(OPTIONS, max_tokens=99))
    batch.add([1], 37, [5, 6, 7])
    batch.add([1], 3, [8])
    batch.add([1] * 20, 41, pages)
    n_slots, sight = 16 * 16, Sight(reach, window)
    groups, arrays = attention.plan_reads(batch, sight, n_slots, rounded)
    assert [(g.first, g.n_seqs, g.n_tokens) for g in groups] == [(0, 2, 1), (2, 1, 20)]
    for i, group in enumerate(groups):
        assert group.start + group.n_keys <= n_slots
        slots = arrays.get(attention.array("slots", sight, i))
        if slots is None:
            slots = np.arange(group.start, group.start + group.n_keys)[None]
        for seq in range(group.n_seqs):
            first = group.first + seq * group.n_tokens
            table = batch.page_tables[batch.seqs[first]]
            for at in batch.positions[first : first + group.n_tokens]:
                if group.causal:
                    keys = np.arange(group.n_keys)
                    seen = keys <= at
                else:
                    keys = arrays[attention.array("keys", sight, i)][seq]
                    seen = np.array(attention.hidden_mask(mx.array(keys)[None], mx.array([[int(at)]]), sight)).reshape(
                        -1
                    )
                end = batch.positions[first + group.n_tokens - 1] + 1
                expected = np.array([p for p in range(end) if {
                    "causal": p <= at and (not window or p > at - window),
                    "chunked": p <= at and p // max(1, window) == at // max(1, window),
                    "whole": not window or abs(p - at) <= window // 2,
                }[reach]])  # fmt: skip
                np.testing.assert_array_equal(np.sort(keys[seen]), expected)
                np.testing.assert_array_equal(slots[seq][seen], table[keys[seen] // 16] * 16 + keys[seen] % 16)


def test_number_of_keys_read() -> None:
    sizes = [attention.bucket(n) for n in range(1, 5000)]
    assert all(n <= size <= max(64, 1.25 * n) or size - n < 64 for n, size in enumerate(sizes, 1))
    assert len(set(sizes)) < 25


def test_stages_hand_values_on(model: oracle.Model) -> None:
    """A program in two stages, between which a value goes out and one comes in, gives what the whole one gives."""
    tensors, program = model.tensors(), model.program
    cut = next(i for i, op in enumerate(program.ops) if op.layer == 1)
    last = program.ops[cut - 1].out
    stages = (Stage(0, cut, sends=(last,)), Stage(cut, len(program.ops), sends=(program.hidden, program.logits)))
    whole, parts = executable(model, tensors), executable(model, tensors, program=replace(program, cuts=stages))
    batch = Batch(OPTIONS)
    batch.add(range(30), 0, [3, 1], "all")
    (sent,) = parts.run_stage(0, batch, [], [last])
    assert sent.host().shape == (30, last.width)
    hidden, logits = (c.host() for c in parts.run_stage(1, batch, [], [program.hidden, program.logits]))
    assert nmse(logits, whole.run(batch)) < 1e-12
    assert nmse(hidden, whole.run(batch, "hidden")) < 1e-12
    later = replace(program, ops=program.ops[cut:], cuts=(Stage(0, len(program.ops) - cut, (last,), stages[1].sends),))
    rest = executable(model, tensors, program=replace(later, states=program.states))
    for crossing in (sent, HostCrossing(sent.host())):
        assert nmse(rest.run_stage(0, batch, [crossing], [program.logits])[0].host(), logits) < 1e-12


def test_memory_is_as_foretold(model: oracle.Model) -> None:
    backend = backends.get("mlx")
    for fmt in ("F32", "Q4_K", "Q6_K", "MXFP4"):
        shape = transformer()
        needed = backend.memory_needed(shape.program, shape.tensors(fmt), OPTIONS)
        exe = backend.compile(shape.program, shape.tensors(fmt), OPTIONS)
        assert {k: exe.memory()[k] for k in ("weights", "kv")} == {k: needed[k] for k in ("weights", "kv")}
        exe.close()
        exe.close()
        assert exe.memory()["weights"] == exe.memory()["kv"] == 0
        with pytest.raises(ClosedError):
            oracle.run(exe, [Step([1], 0, [0])])


@pytest.fixture
def threads() -> Iterator[list[threading.Thread]]:
    started: list[threading.Thread] = []
    yield started
    for thread in started:
        thread.join()


@needs_compiler
@pytest.mark.usefixtures("patience")
def test_steps_from_many_threads(bare: oracle.Model, threads: list[threading.Thread]) -> None:
    """A step is compiled once for all of them, and nothing is held when the executable is closed."""
    gc.collect()  # executables of other tests
    held = mx.get_active_memory()
    exe, results, done = executable(bare, bare.tensors(), compiled=True), [], threading.Event()

    def work() -> None:
        results.append(oracle.run(exe, [Step([5], 0, [0])]))
        done.wait()  # what mlx keeps by thread it would keep until then

    for i in range(4):
        threads.append(threading.Thread(target=work))
        threads[-1].start()
        while len(results) == i and threads[-1].is_alive():
            time.sleep(0.001)
    exe.close()
    left = mx.get_active_memory() - held
    done.set()
    assert left <= 0
    assert exe.n_traces == 1
    for result in results:
        np.testing.assert_allclose(result, results[0], rtol=1e-4, atol=1e-5)


def test_ctrl_c(model: oracle.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reaches the caller, who waits in another thread than the one that computes: nothing runs afterwards."""
    exe = executable(model, model.tensors())
    before, running = oracle.run(exe, [Step(range(10), 0, [0])]), threading.Event()

    def arrives(self: Future[object], timeout: float | None = None) -> None:
        running.wait()
        raise KeyboardInterrupt

    def check(self: MLXExecutable) -> None:
        running.set()
        while not self._interrupted:
            time.sleep(0.001)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Future, "result", arrives)
        patched.setattr(MLXExecutable, "_check_interrupt", check)
        with pytest.raises(KeyboardInterrupt):
            oracle.run(exe, [Step(range(40), 0, [1, 2, 3])])
    np.testing.assert_array_equal(oracle.run(exe, [Step(range(10), 0, [0])]), before)


def test_interrupt(model: oracle.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the midst of a step; the next one works, and what other sequences have stored is there."""
    tensors = model.tensors()
    exe, other = executable(model, tensors), executable(model, tensors)
    for e in (exe, other):
        oracle.run(e, [Step(range(10), 0, [0])])
    done = Lowering.inputs

    def inputs(self: Lowering, batch: Batch, rounded: bool) -> object:
        exe.interrupt()
        return done(self, batch, rounded)

    with monkeypatch.context() as patched:
        patched.setattr(Lowering, "inputs", inputs)
        with pytest.raises(KeyboardInterrupt):
            oracle.run(exe, [Step(range(40), 0, [1, 2, 3])])
    go_on = [Step(range(10, 14), 10, [0])]
    np.testing.assert_array_equal(oracle.run(exe, go_on), oracle.run(other, go_on))


def test_a_device_that_fails(model: oracle.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    exe = executable(model, model.tensors())
    before = oracle.run(exe, [Step(range(10), 0, [0])])
    with monkeypatch.context() as patched:
        patched.setattr("pyllm.backends.mlx.ops.rope.rope", _fail)
        with pytest.raises(OutOfMemoryError, match="Insufficient Memory"):
            oracle.run(exe, [Step(range(10), 0, [1])])
    np.testing.assert_array_equal(oracle.run(exe, [Step(range(10), 0, [0])]), before)


def _fail(*_: object) -> None:
    raise RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory")


def test_errors_say_what_helps() -> None:
    assert isinstance(translated(MemoryError(), "here"), OutOfMemoryError)
    lost = translated(RuntimeError("[METAL] Command buffer execution failed: Device lost"), "in a step")
    assert not isinstance(lost, OutOfMemoryError)
    assert "in a step" in str(lost)


def test_what_is_refused(model: oracle.Model) -> None:
    backend, tensors = backends.get("mlx"), model.tensors()
    with pytest.raises(BackendError, match="q8_0"):
        backend.compile(model.program, tensors, replace(OPTIONS, kv_dtype="q8_0"))
    with pytest.raises(BackendError, match="mlx0"):
        backend.compile(model.program, tensors, replace(OPTIONS, device=1))
    with pytest.raises(BackendError, match="output"):
        backend.compile(model.program, {n: t for n, t in tensors.items() if n != "output_norm.weight"}, OPTIONS)
    with pytest.raises(OutOfMemoryError, match="kv"):
        backend.compile(model.program, tensors, replace(OPTIONS, n_pages=1 << 40))


def test_probe() -> None:
    backend = backends.get("mlx")
    (device,) = backend.devices()
    assert (device.name, device.backend, device.index) == ("mlx0", "mlx", 0)
    assert device.is_gpu == metal.available()
    assert backend.probe().details["version"] == mx.__version__


def test_probe_of_metal(monkeypatch: pytest.MonkeyPatch) -> None:
    """As mlx describes it, with memory beside what is held, or without any of that."""
    module = "pyllm.backends.mlx.backend"
    info = {"device_name": "Apple M9", "architecture": "g99", "memory_size": 1 << 40, "resource_limit": 9}
    info["max_recommended_working_set_size"] = 3 << 38
    monkeypatch.setattr(f"{module}._has_metal", lambda: True)
    monkeypatch.setattr(f"{module}._device_info", lambda _: info)
    (device,) = backends.get("mlx").devices()
    assert (device.description, device.memory_total, device.is_gpu) == ("Apple M9 (Metal)", 1 << 40, True)
    assert device.memory_free == (3 << 38) - mx.get_active_memory()
    monkeypatch.setattr(f"{module}._device_info", lambda _: {})
    (device,) = backends.get("mlx").devices()
    assert (device.memory_total, device.memory_free) == (None, None)
    monkeypatch.setattr(f"{module}._device_info", _fail)
    assert "Insufficient" in backends.get("mlx").probe().reason
    assert backends.get("mlx").devices() == []
