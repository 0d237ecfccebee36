"""Steps that are paused on the CPU: at every op, on any number of threads; interrupted, closed, replaced meanwhile."""

from __future__ import annotations

import threading
from dataclasses import replace
from math import inf

import numpy as np
import oracle
import pytest
from oracle import OPTIONS, Shape, Step, run, transformer

from pyllm.backends.base import Batch, Executable
from pyllm.backends.cpu import BACKEND
from pyllm.config import ExecutionOptions
from pyllm.errors import BackendError, ClosedError
from pyllm.testing import pausing, running
from pyllm.testing.models import Model

SHAPES = {
    "plain": Shape(),
    "window": Shape(qk_norm=True, window=9),
    "experts": Shape(n_experts=5, n_used=3),
    "recurrent": Shape(n_layers=3, recurrent=True),
}
PROMPT = Step([*range(90)], 0, [3, 0, 5, 1, 2, 4], "last")


@pytest.fixture(autouse=True)
def _here() -> None:
    oracle.need("cpu")


def compiled(options: ExecutionOptions = OPTIONS, model: Model | None = None, fmt: str = "Q8_0") -> Executable:
    model = model or transformer(Shape())
    return BACKEND.compile(model.program, model.tensors(fmt), options)


def prompt(exe: Executable) -> Batch:
    batch = Batch(exe.options)
    batch.add(PROMPT.tokens, 0, PROMPT.pages, PROMPT.want)
    return batch


@pytest.mark.parametrize("n_threads", [1, 2, 3])
@pytest.mark.parametrize("name", SHAPES)
def test_pauses_change_no_bit(name: str, n_threads: int) -> None:
    model = transformer(SHAPES[name])
    exe = running.compiled("cpu", model, model.tensors("Q8_0"), replace(OPTIONS, n_threads=n_threads))
    assert pausing.check(exe, Shape().n_vocab) > 5 * Shape().n_layers  # pauses: several in each layer
    exe.close()


def test_without_a_limit_of_time_a_step_is_not_paused() -> None:
    exe = compiled()
    wanted = run(exe, [PROMPT])
    found = exe.begin(prompt(exe), ("logits",), inf)
    assert found is not None
    assert np.array_equal(found[0], wanted)
    assert exe.begin(prompt(exe), ("logits",), 0.0) is None
    found = exe.proceed(inf)
    assert found is not None
    assert np.array_equal(found[0], wanted)
    exe.close()


def test_an_interrupt_drops_a_paused_step_only_while_it_runs() -> None:
    exe = compiled(replace(OPTIONS, n_pages=64, max_tokens=1000, n_threads=1))
    wanted = run(exe, [PROMPT])
    batch = Batch(exe.options)
    batch.add([1] * 900, 0, range(60), "last")
    assert exe.begin(batch, ("logits",), 0.0) is None
    exe.interrupt()  # nothing runs
    assert exe.proceed(0.0) is None
    timer = threading.Thread(target=lambda: [exe.interrupt() for _ in range(200_000)])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        exe.proceed(10.0)
    timer.join()
    with pytest.raises(BackendError, match="no step is paused"):
        exe.proceed(inf)
    assert np.array_equal(run(exe, [PROMPT]), wanted)
    exe.close()


def test_new_weights_drop_a_paused_step_and_are_for_both_lanes() -> None:
    model = transformer(Shape())
    exe, other = compiled(model=model), model.tensors("Q8_0", seed=1)
    changed = {name: other[name] for name in ("blk.0.attn_q.weight", "blk.1.ffn_down.weight")}
    assert exe.begin(prompt(exe), ("logits",), 0.0) is None
    exe.replace(changed)
    with pytest.raises(BackendError, match="no step is paused"):
        exe.proceed(inf)
    short = Step([1, 2, 3], 0, [0])
    assert exe.side is not None
    found = run(exe.side, [short])
    fresh = BACKEND.compile(model.program, model.tensors("Q8_0") | changed, OPTIONS)
    assert np.array_equal(found, run(fresh, [short]))
    fresh.close()
    exe.close()


def test_a_closed_executable_goes_on_with_nothing() -> None:
    exe = compiled()
    batch = prompt(exe)
    assert exe.begin(batch, ("logits",), 0.0) is None
    side = exe.side
    assert side is not None
    exe.close()
    for call in (
        lambda: exe.proceed(inf),
        lambda: exe.begin(batch, ("logits",), inf),
        lambda: run(side, [Step([1], 0, [0])]),
    ):
        with pytest.raises(ClosedError):
            call()
    assert not any(side.memory().values())


@pytest.mark.parametrize("options", [{"max_seqs": 1}, {"max_rows": 1}, {"collect_importance": True}], ids=str)
def test_where_there_is_nothing_to_pause_for_there_is_no_side(options: dict[str, int]) -> None:
    exe = compiled(replace(OPTIONS, **options))
    assert exe.side is None
    with pytest.raises(BackendError, match="cannot pause"):
        exe.begin(prompt(exe), ("logits",), inf)
    exe.close()


def test_work_memory_of_the_side_is_small_and_counted() -> None:
    options = ExecutionOptions(n_pages=64, max_tokens=512, max_seqs=16, max_rows=128)
    model = transformer(Shape())
    with_side, without = (
        BACKEND.memory_needed(model.program, model.tensors(), replace(options, collect_importance=c))
        for c in (False, True)
    )
    assert with_side["work"] < 1.3 * without["work"]
    exe = compiled(options, fmt="F32")
    assert exe.memory() == with_side
    exe.close()
