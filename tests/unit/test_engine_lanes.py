"""Prompts in steps that are paused between the steps of answers that are followed: each answer is what it is alone."""

from __future__ import annotations

import itertools
import os
import threading
from typing import Any

import pytest
from engine_fakes import PausingExecutable, expected_greedy, submit_all
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine_constraints import PLACES
from test_engine_constraints import expected as script
from test_engine_constraints import request as constrained

from pyllm.backends.base import Batch
from pyllm.config import SamplingParams
from pyllm.engine import Engine, GeneratedToken, Generation, GenerationRequest
from pyllm.engine import slices as slicing
from pyllm.engine.slices import Slices
from pyllm.errors import BackendError, ClosedError

N_VOCAB = 50
GREEDY = SamplingParams(temperature=0)
PROMPT = [i % 7 for i in range(100)]
LONG = 300.0


def make(n_ctx: int = 128, **options: int) -> tuple[Engine, PausingExecutable]:
    executable = PausingExecutable(N_VOCAB, **{"n_pages": 200, "max_tokens": 64, **options})
    return Engine(executable, n_ctx=n_ctx, n_vocab=N_VOCAB), executable


def ask(tokens: list[int], n: int | None = 10, **more: Any) -> GenerationRequest:
    return GenerationRequest(tokens, GREEDY, max_tokens=n, **more)


def ids(generation: Generation[GeneratedToken]) -> list[int]:
    return [t.id for t in generation]


class Beside:
    """An answer that is followed, and a prompt that is submitted once that generates. `at` is called before the n-th
    slice of the prompt, the engine's thread waiting for it."""

    def __init__(self, engine: Engine, executable: PausingExecutable, at: dict[int, Any], **more: Any) -> None:
        self.prompt: list[Generation[GeneratedToken]] = []
        self.n_slices = 0

        def submit(batch: Batch) -> None:
            if executable.n_runs == 3 and not self.prompt:
                self.prompt.append(engine.submit(ask(PROMPT, 4, **more)))

        def count(batch: Batch) -> None:
            self.n_slices += 1
            if (call := at.get(self.n_slices)) is not None:
                call()

        executable.on_run, executable.on_slice = submit, count
        self.stream = engine.submit(ask([1, 2], 60, paced=True))

    def check(self) -> None:
        """The stream is right; read the prompt's answer with `ids` before or after."""
        assert ids(self.stream) == expected_greedy([1, 2], 60, N_VOCAB)


def check_clean(engine: Engine) -> None:
    engine.check()
    assert engine.pool.n_available == engine.pool.n_pages
    assert not engine.scheduler.under_way
    engine.close()


def test_a_token_of_each_stream_comes_between_two_slices() -> None:
    engine, executable = make()
    beside = Beside(engine, executable, {})
    beside.check()
    assert ids(beside.prompt[0]) == expected_greedy(PROMPT, 4, N_VOCAB)
    assert executable.prompts == [slicing._FIRST] * 3 + [4]
    assert beside.n_slices == 4 * executable.n_slices
    assert not executable.generated & executable.given
    assert executable.beside[: beside.n_slices - 1] == [1] * (beside.n_slices - 1)
    check_clean(engine)


@pytest.mark.parametrize("paced", [[False], []])
def test_without_followers_prompts_fill_whole_steps(paced: list[bool]) -> None:
    engine, executable = make()
    others = submit_all(engine, [ask([1], 80, paced=p) for p in paced])
    assert ids(engine.submit(ask(PROMPT, 4, paced=True))) == expected_greedy(PROMPT, 4, N_VOCAB)
    assert [ids(other) for other in others] == [expected_greedy([1], 80, N_VOCAB)] * len(others)
    assert not executable.n_begun
    assert not executable.beside
    check_clean(engine)


def test_a_paused_step_ends_at_once_when_the_followers_have_left() -> None:
    engine, executable = make()
    executable.n_slices = 1000
    beside = Beside(engine, executable, {5: lambda: beside.stream.cancel()})
    list(beside.stream)
    assert ids(beside.prompt[0]) == expected_greedy(PROMPT, 4, N_VOCAB)
    assert beside.n_slices < 10
    check_clean(engine)


@pytest.mark.parametrize("at", [1, 2, 3, 5])
def test_a_cancelled_prompt_is_dropped(at: int) -> None:
    engine, executable = make()
    beside = Beside(engine, executable, {at: lambda: beside.prompt[0].cancel()})
    beside.check()
    assert ids(beside.prompt[0]) == []
    assert beside.prompt[0].finish_reason == "cancelled"
    assert beside.n_slices <= at + 1
    check_clean(engine)


def test_a_cancelled_prompt_leaves_another_ones_step_alone() -> None:
    engine, executable = make()
    first: list[Generation[GeneratedToken]] = []
    other = [3] * 9

    def submit() -> None:
        first.append(engine.submit(ask(other, 4)))

    # The long one's last tokens are in a step with the other one's; it is cancelled in the middle of that.
    beside = Beside(engine, executable, {2: submit, 11: lambda: beside.prompt[0].cancel()})
    beside.check()
    assert ids(first[0]) == expected_greedy(other, 4, N_VOCAB)
    assert beside.prompt[0].finish_reason == "cancelled"
    assert executable.prompts == [32, 32, 32, 4 + 9]
    assert not executable.n_dropped
    check_clean(engine)


@pytest.mark.parametrize("at", [1, 2, 6])
def test_an_error_ends_the_prompt_alone(at: int) -> None:
    def fail() -> None:
        raise ValueError("broken")

    engine, executable = make()
    beside = Beside(engine, executable, {at: fail})
    beside.check()
    with pytest.raises(BackendError, match="broken"):
        ids(beside.prompt[0])
    check_clean(engine)


@pytest.mark.parametrize("at", [1, 2, 3])
def test_an_interrupted_slice_begins_its_step_anew(at: int) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    engine, executable = make()
    beside = Beside(engine, executable, {at: interrupt})
    beside.check()
    assert ids(beside.prompt[0]) == expected_greedy(PROMPT, 4, N_VOCAB)
    assert executable.n_begun == 5
    check_clean(engine)


@pytest.mark.parametrize("at", [1, 2])
def test_close_while_a_step_is_paused(at: int) -> None:
    engine, executable = make()
    closing: list[threading.Thread] = []

    def close() -> None:
        closing.append(threading.Thread(target=engine.close))
        closing[0].start()
        while not engine.closed:
            pass

    beside = Beside(engine, executable, {at: close})
    with pytest.raises(ClosedError):
        ids(beside.stream)
    closing[0].join(LONG)
    with pytest.raises(ClosedError):
        ids(beside.prompt[0])
    assert executable.closed == 1
    assert not engine.scheduler.under_way


def test_functions_between_steps_find_no_step_under_way() -> None:
    engine, executable = make()
    found: list[list[object]] = []
    callers: list[threading.Thread] = []

    def call() -> None:
        function = lambda: found.append(list(engine.scheduler.under_way))  # noqa: E731
        callers.append(threading.Thread(target=lambda: (engine.check(), engine.between_steps(function))))
        callers[0].start()
        while not engine._pump._calls:
            pass

    beside = Beside(engine, executable, {2: call})
    beside.check()
    callers[0].join(LONG)
    assert ids(beside.prompt[0]) == expected_greedy(PROMPT, 4, N_VOCAB)
    assert found == [[]]
    assert executable.n_dropped <= 1
    check_clean(engine)


def test_a_prompt_that_loses_its_pages_is_begun_anew() -> None:
    """The stream grows until the pages of the younger prompt are needed, then ends."""
    engine, executable = make(n_ctx=128, n_pages=34, max_seqs=2)
    executable.n_slices = 40
    beside = Beside(engine, executable, {})
    beside.check()
    assert ids(beside.prompt[0]) == expected_greedy(PROMPT, 4, N_VOCAB)
    assert executable.n_dropped
    check_clean(engine)


def test_shared_prefixes_are_published_when_their_step_is_done() -> None:
    engine, executable = make()
    followers: list[Generation[GeneratedToken]] = []
    beside = Beside(engine, executable, {2: lambda: followers.append(engine.submit(ask([*PROMPT[:60], 9], 4)))})
    beside.check()
    assert ids(beside.prompt[0]) == expected_greedy(PROMPT, 4, N_VOCAB)
    assert ids(followers[0]) == expected_greedy([*PROMPT[:60], 9], 4, N_VOCAB)
    assert sum(executable.prompts) <= 100 + 61 - 32  # the first step's pages are not computed again
    check_clean(engine)


def test_masks_of_prompts_and_of_streams_do_not_mix() -> None:
    engine, executable = make()
    late: list[Generation[Any]] = []
    prompt = [*range(30)]

    def submit(batch: Batch) -> None:
        if executable.n_runs == 2:
            late.append(engine.submit(constrained(prompt, PLACES, max_tokens=100)))

    executable.on_run = submit
    held, free = submit_all(
        engine, [constrained([9], PLACES * 3, max_tokens=100, paced=True), ask([8], 40, paced=True)]
    )
    assert ids(held) == script([9], PLACES * 3)
    assert ids(free) == expected_greedy([8], 40, N_VOCAB)
    assert ids(late[0]) == script(prompt, PLACES)
    assert executable.n_begun
    check_clean(engine)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_while_a_step_is_paused() -> None:
    engine, _ = make()
    engine._pump.wake = lambda: None  # type: ignore[method-assign]
    stream = engine.submit(ask([1], 50, paced=True))
    assert [engine.step() for _ in range(3)] == [True] * 3
    generation = engine.submit(ask(PROMPT, 4))
    engine.step()
    assert engine.scheduler.under_way
    engine.after_fork()
    for ended in (stream, generation):
        with pytest.raises(ClosedError, match="forked"):
            ids(ended)
    assert ids(engine.submit(ask(PROMPT, 4))) == expected_greedy(PROMPT, 4, N_VOCAB)
    check_clean(engine)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_pauses_change_no_answer(data: st.DataObject) -> None:
    """Of prompts of any length and priority, with few pages, shifts of contexts, slow readers, rows of prompts."""
    n_pages, n_slots = data.draw(st.integers(11, 40)), data.draw(st.sampled_from([0, 7, 12]))
    engine, executable = make(n_ctx=40, n_pages=n_pages, n_slots=n_slots, max_seqs=3, max_tokens=12)
    executable.n_slices = data.draw(st.integers(1, 4))
    engine._slices.chunk = data.draw(st.integers(3, 12))
    lengths = data.draw(st.lists(st.integers(1, 30), min_size=1, max_size=7))
    prompts = [[*range(n), i] for i, n in enumerate(lengths)]
    requests = [
        ask(
            p,
            9,
            paced=data.draw(st.booleans()),
            priority=data.draw(st.integers(-1, 1)),
            unread=data.draw(st.sampled_from([1, 2, None])),
            prompt_logprobs=data.draw(st.sampled_from([None, None, 0])),
        )
        for p in prompts
    ]
    generations = submit_all(engine, requests)
    shifted = data.draw(st.booleans())
    if shifted:
        generations.append(engine.submit(ask([1, 2, 3], 90, paced=True, context_shift=True)))
    cancelled = data.draw(st.sets(st.integers(0, len(prompts) - 1)))
    for i in cancelled:
        generations[i].cancel()
    for i, prompt in enumerate(prompts):
        answer = expected_greedy(prompt, 9, N_VOCAB)
        got = ids(generations[i])
        assert got == answer[: len(got)]
        assert len(got) == 9 or i in cancelled
    if shifted:
        assert len(ids(generations[-1])) == 90
    check_clean(engine)


LAYER = 0.1, 0.02, 1.0, 0.1, 0.3, 0.1
"""Seconds of a layer's ops, as parts of the longest: attention to a long context."""


def walk(slices: Slices, usual: float, op: float, n: int) -> list[float]:
    """Seconds of n slices of steps whose longest op takes so long for each token."""
    out, ops = [], itertools.cycle(LAYER)
    for _ in range(n):
        slices.note_step(usual)
        took = 0.0
        if (asked := slices.seconds(usual)) is None:
            continue
        while took <= asked:
            took += op * slices.chunk * next(ops)
        slices.note(took)
        out.append(took)
    return out


@settings(deadline=None)
@given(st.floats(1e-3, 0.5), st.floats(1e-7, 1e-3))
def test_slices_usually_take_no_longer_than_the_step_beside_them(usual: float, op: float) -> None:
    slices = Slices()
    found = sorted(walk(slices, usual, op, 600)[100:])
    if slices.chunk > 16:
        assert found[len(found) // 2] <= usual
        assert found[3 * len(found) // 4] <= 1.7 * usual
        assert found[len(found) // 2] >= 0.3 * usual


def test_a_usual_step_is_measured_now_and_then() -> None:
    slices = Slices()
    asked = [slices.seconds(0.1) for _ in range(100)]
    assert [i for i, seconds in enumerate(asked) if seconds is None] == [24, 49, 74, 99]


def test_what_a_step_takes_longer_after_a_slice_is_taken_from_the_slice() -> None:
    for slower in (0.0, 0.05, 0.5):
        slices = Slices()
        slices.seconds(0.1)
        for _ in range(3):
            slices.note_step(0.1 + slower)
        assert slices.seconds(0.1) == pytest.approx(max(0.02, 1.8 * 0.1 - 0.1 - slower))


def test_steps_of_prompts_are_as_large_as_their_ops_allow() -> None:
    slices = Slices()
    walk(slices, 0.1, 1e-6, 100)
    assert slices.chunk == 128
    walk(slices, 0.1, 1e-2, 100)
    assert slices.chunk == 16
