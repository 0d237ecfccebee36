# ruff: noqa: E402 (what is imported needs mlx)
"""Recurrent ops on mlx: chunks beside single tokens in float64, slots without copies, compiled steps, failures.

What ops compute, and states after any cut and save, is tested with the other backends (test_ops.py, test_states.py).
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import oracle
import pytest
from numpy.typing import NDArray
from oracle import OPTIONS, Step, assert_close

mx = pytest.importorskip("mlx.core")

from mlx_tools import executable, needs_compiler, traced

from pyllm.backends.base import Batch
from pyllm.backends.mlx import metal, metal_states
from pyllm.backends.mlx.executable import MLXExecutable
from pyllm.backends.mlx.recurrent import CHUNK, CHUNK_BY_ROW, by_products, kernel_works
from pyllm.errors import BackendError
from pyllm.testing import ops
from pyllm.testing.models import one_op
from pyllm.testing.running import SLOTS_PER_PAGE

F64 = NDArray[np.float64]

SLOTS = replace(OPTIONS, n_slots=OPTIONS.n_pages * SLOTS_PER_PAGE)
RECURRENT = sorted(name for name, record in ops.cases().items() if one_op(record).program.slots)
SHAPE = oracle.Shape(n_layers=2, recurrent=True)


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are compiled however long they take on a busy machine."""
    monkeypatch.setattr("pyllm.backends.mlx.executable._TOO_LONG", 60.0)


# --- chunks


def by_tokens(
    q: F64,
    k: F64,
    v: F64,
    decay: F64,
    erase: F64 | None = None,
    insert: F64 | None = None,
    *,
    before: bool = False,
    state: F64 | None = None,
) -> tuple[F64, F64]:
    """What `by_products` gives of a head: q, k, erase, insert [n, keys], v [n, values], decay [n, 1 or keys]."""
    s, out = np.zeros((q.shape[1], v.shape[1])) if state is None else state, np.zeros(v.shape)
    for t in range(len(q)):
        seen, erased = s.T @ q[t], None if erase is None else s.T @ erase[t]
        s = np.exp(decay[t])[:, None] * s + np.outer(k[t], v[t])
        if insert is not None and erased is not None:
            s += np.outer(insert[t], erased)
        out[t] = seen if before else s.T @ q[t]
    return out, s


def chunked(*given: F64, before: bool = False) -> tuple[F64, F64]:
    """The same by products, in chunks as long as a rule's."""
    arrays = [mx.array(x.astype(np.float32))[None, :, None] for x in given]
    chunk = CHUNK if given[3].shape[1] == 1 else CHUNK_BY_ROW
    state, out = mx.zeros((1, 1, given[0].shape[1], given[2].shape[1])), []
    for at in range(0, len(given[0]), chunk):
        piece, state = by_products(state, *(x[:, at : at + chunk] for x in arrays), before=before)
        out.append(np.asarray(piece)[0])
    return np.concatenate(out).astype(np.float64), np.asarray(state)[0, 0].astype(np.float64)


def compare(*given: F64, before: bool = False) -> None:
    for got, wanted in zip(chunked(*given, before=before), by_tokens(*given, before=before), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=2e-5 * max(1.0, np.abs(wanted).max()))


N, KEYS, VALUES = 150, 12, 8


def normal(seed: int, *columns: int) -> list[F64]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(N, n)) for n in columns]


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("rows", [1, KEYS])
@pytest.mark.parametrize("strength", [0.0, 0.1, 3.0, 200.0])
def test_chunks_are_tokens(rows: int, strength: float, before: bool) -> None:
    """However strong decays are: the largest leave nothing, and beside them the least leave all."""
    q, k, v = normal(0, KEYS, KEYS, VALUES)
    decay = -strength * np.random.default_rng(1).uniform(size=(N, rows)) ** 8
    compare(q, k, v, decay, before=before)


@pytest.mark.parametrize("rows", [1, KEYS])
def test_chunks_erase(rows: int) -> None:
    """The delta rule: with keys that are all the same, nearly the same, or drawn, what was known is gone."""
    q, k, v = normal(2, KEYS, KEYS, VALUES)
    decay, beta = -np.random.default_rng(3).uniform(size=(N, rows)) * 0.1, np.ones((N, 1))
    for spread in (0.0, 0.05, 1.0):
        keys = k[:1] + spread * (k - k[:1])
        keys /= np.linalg.norm(keys, axis=1, keepdims=True)
        compare(q, keys, beta * v, decay, np.exp(decay) * keys, -beta * keys)
        compare(q, keys, beta * v, 0 * decay, keys, -beta * keys)


# --- slots


@pytest.fixture
def model() -> oracle.Model:
    return oracle.transformer(SHAPE)


@pytest.fixture
def exe(model: oracle.Model) -> Iterator[MLXExecutable]:
    compiled = executable(model, model.tensors(), SLOTS)
    yield compiled
    compiled.close()


def wide() -> oracle.Model:
    """A single op with a state of 128 KB."""
    return one_op(ops.cases()["linear_attention-heads_of_128"])


def test_no_slot_is_copied() -> None:
    """A step's memory holds the states that it reads and writes, of 64 others none."""
    model = wide()
    exe = executable(model, model.tensors(), replace(OPTIONS, n_slots=64))
    state = exe.memory()["kv"] // 64
    for slot in range(64):
        batch = Batch(exe.options)
        batch.add([1], 0, [0], saves=[(1, slot)])
        exe.run(batch)
    for n in (1, 3):
        batch = Batch(exe.options)
        for seq in range(n):
            batch.add([1], 1, [seq], state_in=seq, saves=[(1, 32 + seq)])
        held = mx.get_active_memory()
        mx.reset_peak_memory()
        exe.run(batch)
        assert mx.get_peak_memory() - held < 6 * n * state
    exe.close()


def test_saves_of_one_step_are_freed_one_by_one() -> None:
    """A save holds its own state's memory, not that of all that were computed with it."""
    model = wide()
    exe = executable(model, model.tensors(), replace(OPTIONS, n_slots=8))
    state = exe.memory()["kv"] // 8
    held = mx.get_active_memory()
    for _ in range(2):
        batch = Batch(exe.options)
        for seq in range(4):
            batch.add([1], 0, [seq], saves=[(1, seq)])
        exe.run(batch)
        assert mx.get_active_memory() - held < 4.5 * state
    exe.close()


def test_a_failed_step_leaves_states(exe: MLXExecutable, monkeypatch: pytest.MonkeyPatch) -> None:
    begin, go_on = [Step(range(10), 0, [0])], [Step(range(10, 14), 10, [0])]
    oracle.run(exe, begin)
    wanted = oracle.run(exe, go_on)
    with monkeypatch.context() as patched:
        patched.setattr("pyllm.backends.mlx.ops.attention.att.attention", _fail)
        with pytest.raises(BackendError, match="Device lost"):
            oracle.run(exe, go_on)
    oracle.run(exe, [Step(range(10), 0, [0])])  # keys of a lost device are lost
    np.testing.assert_array_equal(oracle.run(exe, go_on), wanted)


def _fail(*_: object) -> None:
    raise RuntimeError("[METAL] Command buffer execution failed: Device lost")


def test_work_memory_is_estimated() -> None:
    """Within a factor of three of what mlx counts."""
    options = replace(OPTIONS, n_pages=160, max_tokens=512, n_slots=4)
    for name in ("delta-grouped", "delta-by_row", "linear_attention-by_head", "ssm-mamba1", "ssm-mamba2"):
        model = one_op(ops.cases()[name])
        exe = executable(model, model.tensors(), options)
        batch = Batch(options)
        for seq in range(4):
            batch.add([1] * 128, 0, range(8 * seq, 8 * seq + 8), saves=[(128, seq)])
        exe.run(batch)
        mx.clear_cache()
        held = mx.get_active_memory()
        mx.reset_peak_memory()
        exe.run(batch)
        taken = mx.get_peak_memory() - held
        assert taken / 3 < exe.lowering.sizes()["work"] < 3 * taken, name
        exe.close()


# --- compiled steps


@needs_compiler
def test_decoding_is_compiled_once(model: oracle.Model) -> None:
    """Whichever slots are read and written: one function for a token, one for two sequences, one for two saves."""
    tensors, tokens = model.tensors(), oracle.random_tokens(60, 160)
    compiled, plain = executable(model, tensors, SLOTS, compiled=True), executable(model, tensors, SLOTS)
    steps = [[Step([tokens[at]], at, [2, 3, 4, 5])] for at in range(40)]
    steps += [[Step([tokens[at]], at, [2, 3, 4, 5]), Step([tokens[at]], at - 40, [7, 8])] for at in range(40, 44)]
    steps += [[Step(tokens[at : at + 2], at, [2, 3, 4, 5], also_after=[at + 1])] for at in range(44, 50, 2)]
    for step in steps:
        assert_close([(oracle.run(compiled, step), oracle.run(plain, step))], 1e-9)
    assert (compiled.n_traces, plain.n_traces) == (3, 0)
    compiled.close()
    plain.close()


@pytest.mark.parametrize("case", RECURRENT)
def test_every_recurrent_op_can_be_compiled(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is computed, so that no program need be compiled by g++."""
    m = one_op(ops.cases()[case])
    exe = executable(m, m.tensors(), SLOTS, half=True, compiled=True)
    oracle.run(exe, step := [Step([1, 2, 3], 0, [0], also_after=[1]), Step([3], 0, [1])])
    with monkeypatch.context() as patched:
        patched.setattr(mx, "eval", traced)
        with pytest.raises(BackendError, match="traced"):
            oracle.run(exe, step)
    assert exe.n_traces == 1
    exe.close()


# --- the Metal kernel

SHIM = """
#include <cstdint>
#include <ucontext.h>
#define UNROLL
typedef unsigned short ushort; typedef unsigned int uint; typedef unsigned long ulong;
static struct { uint x, y, z; } threadgroup_position_in_grid;
static uint simdgroup_index_in_threadgroup;
// lanes take turns: each runs up to an exchange of numbers, then the next one
static int lane, calls[32]; static float held[2][32]; static ucontext_t lanes[32], back;
static char stacks[32][1 << 16];
#define thread_index_in_simdgroup lane_of_this
static void yield() { int me = lane; lane = (me + 1) % 32; swapcontext(&lanes[me], &lanes[lane]); }
static float simd_shuffle_xor(float x, ushort apart) {
    int me = lane, call = calls[me]++ % 2;
    held[call][me] = x;
    yield();
    return held[call][me ^ apart];
}
static void (*body)();
static void enter() { body(); if (lane < 31) { lane++; setcontext(&lanes[lane]); } setcontext(&back); }
static void simdgroup() {
    for (int i = 0; i < 32; i++) {
        getcontext(&lanes[i]);
        lanes[i].uc_stack.ss_sp = stacks[i]; lanes[i].uc_stack.ss_size = sizeof stacks[i]; lanes[i].uc_link = nullptr;
        calls[i] = 0;
        makecontext(&lanes[i], enter, 0);
    }
    lane = 0;
    swapcontext(&back, &lanes[0]);
}
"""
ENTRY = """
namespace {name} {{
{constants}
static const float *state, *q, *k, *v, *factors, *erase, *insert; static const int* n; static float *y, *after;
static void run() {{ const int lane_of_this = lane; {source} }}
}}
extern "C" void run_{name}(const float* state, const float* q, const float* k, const float* v, const float* factors,
                           const float* erase, const float* insert, const int* n, float* y, float* after,
                           int n_groups, int heads) {{
    {assign}
    body = {name}::run;
    for (int at = 0; at < n_groups * GROUPS_ * heads; at++) {{
        threadgroup_position_in_grid = {{uint(at / GROUPS_ % n_groups), 0, uint(at / GROUPS_ / n_groups)}};
        simdgroup_index_in_threadgroup = at % GROUPS_;
        simdgroup();
    }}
}}
"""
KERNELS = {
    "plain": (20, 24, {"by_row": False, "erases": False, "before": False}),
    "before": (16, 40, {"by_row": True, "erases": False, "before": True}),
    "erasing": (33, 9, {"by_row": True, "erases": True, "before": False}),
    "all": (128, 8, {"by_row": False, "erases": True, "before": True}),
}
"""Rows and columns of a state, and what the recurrence has."""
SEQUENCES, HEADS, TOKENS = 2, 3, 5


def _source(name: str) -> str:
    rows, columns, options = KERNELS[name]
    constants = metal_states.constants(HEADS, rows, columns, **options)
    names = (*metal_states.INPUTS, *metal_states.OUTPUTS)
    return ENTRY.format(
        name=name,
        constants="".join(f"static constexpr int {k} = {int(v)};\n" for k, v in constants.items()),
        source=metal_states.SOURCE,
        assign=" ".join(f"{name}::{n} = {n};" for n in names),
    ).replace("GROUPS_", str(metal_states.GROUPS))


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if not (compiler := shutil.which("g++")):
        pytest.skip("g++ is not here to compile the Metal kernel as C++")
    folder = tmp_path_factory.mktemp("metal")
    header = metal_states.HEADER.replace("#define UNROLL", "#define UNROLL_OF_METAL")
    (folder / "kernel.cpp").write_text(SHIM + header + "".join(map(_source, KERNELS)))
    command = [compiler, "-std=c++17", "-O1", "-fPIC", "-shared", "kernel.cpp", "-o", "kernel.so"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(folder / "kernel.so"))


@pytest.mark.parametrize("name", KERNELS)
def test_metal_kernel_as_cpp(kernels: ctypes.CDLL, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the arguments that Metal would get."""
    rows, columns, options = KERNELS[name]
    rng = np.random.default_rng(6)
    q, k, erase, insert = (0.3 * rng.normal(size=(SEQUENCES, TOKENS, HEADS, rows)) for _ in range(4))
    v = rng.normal(size=(SEQUENCES, TOKENS, HEADS, columns))
    decay = -rng.uniform(size=(SEQUENCES, TOKENS, HEADS, rows if options["by_row"] else 1))
    state = rng.normal(size=(SEQUENCES, HEADS, rows, columns))
    pair = (erase, insert) if options["erases"] else ()

    def launch(
        inputs: list[Any], template: list[Any], grid: Any, threadgroup: Any, output_shapes: Any, output_dtypes: Any
    ) -> list[NDArray[np.float32]]:
        assert dict(template[:-1]) == metal_states.constants(HEADS, rows, columns, **options)
        assert (threadgroup, output_dtypes) == ((32 * metal_states.GROUPS, 1, 1), [mx.float32, mx.float32])
        out = [np.full(shape, np.nan, np.float32) for shape in output_shapes]
        arrays = [*(np.ascontiguousarray(x) for x in inputs), *out]
        pointers = [a.ctypes.data_as(ctypes.c_void_p) for a in arrays]
        kernels[f"run_{name}"](*pointers, grid[0] // threadgroup[0], grid[2])
        return out

    monkeypatch.setattr(metal_states, "_kernel", lambda: launch)
    given = [mx.array(x.astype(np.float32)) for x in (state, q, k, v, decay, *pair)]
    y, after = metal_states.recurrence(*given, before=options["before"])
    y = y.reshape(v.shape)
    for seq, head in np.ndindex(SEQUENCES, HEADS):
        of_head = [x[seq, :, head] for x in (q, k, v, decay, *pair)]
        out, last = by_tokens(*of_head, before=options["before"], state=state[seq, head])
        np.testing.assert_allclose(y[seq, :, head], out, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(after[seq, head], last, rtol=1e-4, atol=1e-4)


def test_a_kernel_is_tried_before_it_is_used(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    assert kernel_works() == metal.available()
    monkeypatch.setattr(metal, "available", lambda: True)
    for gives, works in ((1.0, True), (1.1, False), (None, False)):

        def computed(*given: mx.array, gives: float | None = gives) -> tuple[mx.array, mx.array]:
            if gives is None:
                raise RuntimeError("Unable to build metal library from source")
            out, state = by_products(*given)
            return out * gives, state

        monkeypatch.setattr(metal_states, "recurrence", computed)
        caplog.clear()
        assert kernel_works.__wrapped__() == works
        assert bool(caplog.records) != works


@pytest.mark.skipif(not metal.available(), reason="there is no Metal here")
def test_metal_kernel() -> None:
    assert kernel_works()
