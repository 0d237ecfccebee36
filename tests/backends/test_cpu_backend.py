"""The CPU backend as a whole: fusion, memory and its limits, interrupts, ends, the ways that models rarely take."""

from __future__ import annotations

import mmap
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import OPTIONS, Shape, Step, assert_close, nmse, ragged_batches, run, run_both, transformer

from pyllm import archs
from pyllm.backends.base import Batch
from pyllm.backends.cpu import BACKEND
from pyllm.backends.cpu.executable import CPUExecutable
from pyllm.backends.cpu.lowering import Lowering
from pyllm.backends.cpu.ops import embed
from pyllm.backends.cpu.table import Table
from pyllm.backends.plan.memory import Buffer
from pyllm.config import ExecutionOptions
from pyllm.errors import ClosedError, OutOfMemoryError, RequestError
from pyllm.gguf import open_gguf
from pyllm.jit import memory


@pytest.fixture(autouse=True)
def _here() -> None:
    oracle.need("cpu")


def compiled(options: ExecutionOptions = OPTIONS, fmt: str = "F32") -> CPUExecutable:
    model = transformer(Shape())
    executable = BACKEND.compile(model.program, model.tensors(fmt), options)
    assert isinstance(executable, CPUExecutable)
    return executable


# --- planning


def labels(shape: Shape, fmt: str) -> Counter[str]:
    model = transformer(shape)
    low = Lowering(model.program, model.tensors(fmt), OPTIONS)
    return Counter(e.label.split()[0] for e in low.table.entries)


def test_a_layer_is_nine_ops() -> None:
    n = Shape().n_layers
    # Sums, selections of rows, rotations and most quantizations are part of other ops; the three products before
    # attention are one, and so are the two before the activation.
    assert labels(Shape(), "F32") == {
        "embed": 1, "rope": 1, "norm": 2 * n + 1, "store": n, "attention": n, "linear": 4 * n + 1, "silu": n, "copy": 2,
    }  # fmt: skip
    quantized = labels(Shape(), "Q8_0")
    assert quantized["quantize"] == n
    assert quantized["copy"] == 1


def test_norms_of_queries_and_keys_are_part_of_storing_them() -> None:
    assert labels(Shape(qk_norm=True), "F32") == labels(Shape(), "F32")


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 500), st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=40))
def test_buffers_that_are_needed_at_once_do_not_overlap(items: list[tuple[int, int, int]]) -> None:
    table = Table()
    buffers = [Buffer(n) for n, _, _ in items]
    for b, (_, x, y) in zip(buffers, items, strict=True):
        table.touch(b, x)
        table.touch(b, y)
    total = table.arrange()
    for i, a in enumerate(buffers):
        assert a.address % 64 == 0
        assert a.address + a.n_bytes <= total
        for b in buffers[:i]:
            apart = a.address + a.n_bytes <= b.address or b.address + b.n_bytes <= a.address
            assert apart or a.last < b.first or b.last < a.first
    assert total <= sum(-(-b.n_bytes // 64) * 64 for b in buffers)


def test_what_is_no_longer_needed_is_used_again() -> None:
    table = Table()
    for i in range(100):
        b = Buffer(1000)
        table.touch(b, i)
        table.touch(b, i + 1)
    assert table.arrange() == 2 * 1024


# --- ways that models rarely take


def test_token_tables_of_a_format_without_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed, "EMBED_FORMATS", frozenset())
    assert_close(run_both("cpu", transformer(Shape()), "Q8_0"), 1e-3)


@pytest.mark.parametrize("n_threads", [1, 5])
def test_the_number_of_threads_changes_nothing(n_threads: int) -> None:
    batches = ragged_batches(Shape().n_vocab)
    two, other = compiled(), compiled(replace(OPTIONS, n_threads=n_threads))
    for batch in batches:
        assert nmse(run(other, batch), run(two, batch)) < 1e-10
    two.close()
    other.close()


def test_hidden_states_stop_before_the_logits() -> None:
    pairs = run_both("cpu", transformer(Shape()), want="hidden")
    assert_close(pairs, 1e-9)
    assert pairs[0][0].shape[1] == Shape().n_embd


def test_a_batch_of_nothing_and_one_that_is_too_large() -> None:
    executable = compiled()
    assert executable.run(Batch(OPTIONS)).shape == (0, Shape().n_vocab)
    for wrong in (replace(OPTIONS, max_tokens=97), replace(OPTIONS, page_size=32)):
        batch = Batch(wrong)
        batch.add([1], 0, [0])
        with pytest.raises(RequestError):
            executable.run(batch)
    executable.close()


# --- memory


def test_too_little_memory_is_said_before_any_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutOfMemoryError, match=r"of memory are needed .*kv [\d,.]+ GiB.* are free"):
        compiled(replace(OPTIONS, n_pages=1 << 28))
    monkeypatch.setattr(memory, "free_memory", lambda: None)  # a system that does not say: the mapping itself fails
    with pytest.raises(OutOfMemoryError, match="KV cache"):
        compiled(replace(OPTIONS, n_pages=1 << 40))


def test_released_pages_are_read_again(tmp_path: Path) -> None:
    want = np.arange(100_000, dtype=np.uint8)
    (tmp_path / "file").write_bytes(want.tobytes())
    with (tmp_path / "file").open("rb") as f:
        mapped = np.frombuffer(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    memory.release(mapped[1000:90_000])
    np.testing.assert_array_equal(mapped, want)
    own = want.copy()
    own.flags.writeable = False
    memory.release(own)
    np.testing.assert_array_equal(own, want)


def test_close_frees_everything_and_results_stay() -> None:
    executable, steps = compiled(), [Step([1, 2, 3], 0, [0])]
    batch = Batch(OPTIONS)
    batch.add([1, 2, 3], 0, [0], "all")
    kept = executable.run(batch)
    copy = kept.copy()
    assert all(n > 0 for n in executable.memory().values())
    executable.close()
    executable.close()
    assert set(executable.memory().values()) == {0}
    np.testing.assert_array_equal(kept, copy)
    with pytest.raises(ClosedError):
        run(executable, steps)


# --- interrupts


def test_an_interrupt_while_nothing_runs_is_forgotten() -> None:
    executable, steps = compiled(), [Step([1, 2, 3], 0, [0])]
    want = run(executable, steps)
    executable.interrupt()
    np.testing.assert_array_equal(run(executable, steps), want)
    executable.close()


def test_an_interrupt_ends_a_prompt_at_once(model_path: Callable[[str], Path]) -> None:
    options = ExecutionOptions(n_pages=64, max_tokens=2048, n_threads=2)
    with open_gguf(model_path("smollm2")) as file:
        program = archs.load(file.metadata, file.tensors, 2048).program
        executable = BACKEND.compile(program, file.tensors, options)
    batch = Batch(options)
    batch.add([504, 3575, 282, 4649, 314], 0, range(64))
    want = executable.run(batch).copy()
    long = Batch(options)
    long.add([1] * 2048, 0, range(64))
    started = time.perf_counter()
    executable.run(long)
    whole = time.perf_counter() - started
    asked: list[float] = []
    waited: list[float] = []

    def interrupt() -> None:
        asked.append(time.perf_counter())
        executable.interrupt()

    for _ in range(3):  # the machine may be busy with something else now and then
        threading.Timer(whole / 20, interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            executable.run(long)
        waited.append(time.perf_counter() - asked[-1])
    assert min(waited) < whole / 4
    np.testing.assert_array_equal(executable.run(batch), want)
    assert want[0].argmax() == 7042  # " Paris"
    executable.close()
