"""Who waits for whom: chunks of prompts sized by time, priorities, a bounded queue, deadlines."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from engine_fakes import FakeExecutable, expected_greedy, submit_all
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine_constraints import expected as script
from test_engine_constraints import request as constrained

from pyllm.backends.base import Batch
from pyllm.config import SamplingParams
from pyllm.engine import Engine, GenerationRequest
from pyllm.engine import pace as pacing
from pyllm.engine.pace import Pace
from pyllm.errors import QueueFullError, RequestError

N_VOCAB = 50
GREEDY = SamplingParams(temperature=0)
LONG = 300.0


def make(n_ctx: int = 128, max_waiting: int | None = None, **options: int) -> tuple[Engine, FakeExecutable]:
    executable = FakeExecutable(N_VOCAB, **options)
    return Engine(executable, n_ctx=n_ctx, n_vocab=N_VOCAB, max_waiting=max_waiting), executable


def ask(tokens: list[int], n: int | None = 10, **more: Any) -> GenerationRequest:
    return GenerationRequest(tokens, GREEDY, max_tokens=n, **more)


def steps(pace: Pace, seconds: Callable[[int, int], float], n: int, n_answers: int = 1) -> list[tuple[int, float]]:
    """Prompt tokens and seconds of n steps beside answers, of a prompt that does not end."""
    out = []
    for _ in range(n):
        chunk = pace.limit(n_answers)
        took = seconds(n_answers, chunk)
        pace.note(n_answers, chunk, took)
        out.append((chunk, took))
    return out


@settings(deadline=None)
@given(st.floats(1e-4, 0.2), st.floats(1e-6, 1e-2), st.floats(0, 0.25), st.integers(1, 16))
def test_steps_take_at_most_twice_their_usual_time(fixed: float, each: float, start: float, n_answers: int) -> None:
    """Of steps whose time is a plane: a fixed part, one for each token, and one for having a prompt at all."""
    start *= fixed

    def seconds(n: int, chunk: int) -> float:
        return fixed + each * (n + chunk) + start * (chunk > 0)

    usual = seconds(n_answers, 0)
    found = steps(Pace(), seconds, 100, n_answers)
    for chunk, took in found[2:]:  # the first one with a prompt is a guess
        assert took <= 2.0001 * usual or chunk == pacing._LEAST
    assert max(chunk for chunk, _ in found[30:]) >= 0.5 * (pacing._MARGIN * usual - start) / each - 1


def test_chunks_grow_where_having_one_is_what_costs() -> None:
    """As on a card: 3 ms for answers, 7 more for a step with a prompt of any size, and 0.04 ms for each token of it."""
    pace = Pace()
    for _ in range(3):
        pace.note(0, 512, 512 * 4e-5)
    found = steps(pace, lambda n, chunk: 3e-3 + 7e-3 * (chunk > 0) + 4e-5 * chunk, 400, 4)
    with_prompts = [(chunk, took) for chunk, took in found if chunk]
    assert sum(chunk for chunk, _ in with_prompts[20:]) / len(with_prompts[20:]) > 40
    assert max(took for _, took in with_prompts) < 3e-3 + 3.5 * 7e-3


def test_one_slow_step_makes_the_next_chunk_small() -> None:
    pace = Pace()
    steps(pace, lambda n, chunk: 0.02 + 1e-4 * chunk, 30)
    full = pace.limit(1)
    pace.note(1, full, 0.2)
    assert pace.limit(1) <= full / 8
    steps(pace, lambda n, chunk: 0.02 + 1e-4 * chunk, 12)
    assert pace.limit(1) in (0, *range(full // 2, 2 * full))


@pytest.mark.parametrize(("paced", "largest"), [(False, 64), (True, 1 + 7)])
def test_prompts_are_limited_beside_answers_that_are_followed(paced: bool, largest: int) -> None:
    engine, executable = make(max_tokens=64, n_pages=200, n_ctx=700)
    engine.scheduler.pace.limit = lambda n_answers: 7  # type: ignore[method-assign]
    long = [i % 7 for i in range(500)]
    second = []

    def submit(batch: object) -> None:
        if executable.n_runs == 3:
            second.append(engine.submit(ask(long, 1, paced=True)))

    executable.on_run = submit
    first = engine.submit(ask([1, 2], 200, paced=paced))
    assert [t.id for t in first] == expected_greedy([1, 2], 200, N_VOCAB)
    assert [t.id for t in second[0]] == expected_greedy(long, 1, N_VOCAB)
    assert max(n for n, _, _ in executable.sizes) == largest


def test_forced_tokens_of_an_answer_do_not_wait_for_prompts() -> None:
    """A prompt of a higher priority is read in chunks of two tokens; an answer's forced tokens go on beside it."""
    places = [place for i in range(6) for place in ([1, 2], [3], [4], [5 + i])]
    engine, executable = make()
    engine.scheduler.pace.limit = lambda n_answers: 2  # type: ignore[method-assign]
    long = []

    def submit(batch: object) -> None:
        if executable.n_runs == 1:
            long.append(engine.submit(ask(list(range(40)), 1, priority=1)))

    executable.on_run = submit
    requests = [ask([8], 60, paced=True), constrained([9], places, max_tokens=100, paced=True)]
    free, held = submit_all(engine, requests)
    assert [t.id for t in held] == script([9], places)
    assert [t.id for t in free] == expected_greedy([8], 60, N_VOCAB)
    assert [t.id for t in long[0]] == expected_greedy(list(range(40)), 1, N_VOCAB)
    # One token of the free answer, four of the held one (a choice and those forced before), two of the prompt.
    assert executable.sizes.count((1 + 4 + 2, 3, 2)) >= 4


def test_higher_priorities_go_first() -> None:
    engine, executable = make(max_seqs=1)
    order: list[int] = []
    enter = threading.Event()
    executable.on_run = lambda batch: (enter.wait(LONG), order.append(int(batch.tokens[0])))[0] and None
    requests = [ask([10 + i], 1, priority=p) for i, p in enumerate((0, 5, -1, 5, 0))]
    generations = submit_all(engine, requests)
    enter.set()
    for generation in generations:
        list(generation)
    assert order == [11, 13, 10, 14, 12]


def test_a_full_queue_says_when_to_come_back() -> None:
    engine, executable = make(max_seqs=2, max_waiting=3)
    leave = threading.Event()
    executable.on_run = lambda batch: leave.wait(LONG) and None
    running = submit_all(engine, [ask([i], 2) for i in range(5)])
    with pytest.raises(QueueFullError, match=r"queue of 3 requests is full, .*try again in 1 s") as caught:
        engine.submit(ask([9], 1))
    assert caught.value.retry_after >= 1
    running.pop().cancel()
    leave.set()
    for i, generation in enumerate(running):
        assert [t.id for t in generation] == expected_greedy([i], 2, N_VOCAB)
    assert len(list(engine.submit(ask([9], 1)))) == 1
    with pytest.raises(QueueFullError):
        submit_all(engine, [ask([i], 1) for i in range(6)])
    engine.check()
    assert engine.pool.n_available == engine.pool.n_pages


def test_an_answer_ends_at_its_deadline_with_what_there_is() -> None:
    engine, executable = make(n_ctx=1000, n_pages=400, max_seqs=2)
    executable.on_run = lambda batch: time.sleep(0.002)
    other = engine.submit(ask([5], 300))
    late = engine.submit(ask([1, 2], 800, timeout=0.2))
    waiting = engine.submit(ask([3], 5, timeout=0.05))  # two are running: it never starts
    tokens = [t.id for t in late]
    assert late.finish_reason == "timeout"
    assert 0 < len(tokens) < 800
    assert tokens == expected_greedy([1, 2], len(tokens), N_VOCAB)
    assert (list(waiting), waiting.finish_reason) == ([], "timeout")
    assert [t.id for t in other] == expected_greedy([5], 300, N_VOCAB)
    for wrong in (0, -1.0):
        with pytest.raises(RequestError, match="timeout"):
            engine.submit(ask([1], timeout=wrong))
    engine.check()
    assert engine.pool.n_available == engine.pool.n_pages


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_chunks_change_no_answer(data: st.DataObject) -> None:
    """Limits as a clock might give them, with priorities: what comes is what each gives alone."""
    engine, executable = make(n_ctx=40, n_pages=20, max_seqs=3, max_tokens=12)
    limits = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=8))
    count = iter(range(1 << 30))
    engine.scheduler.pace.limit = lambda n: limits[next(count) % len(limits)]  # type: ignore[method-assign]
    lengths = data.draw(st.lists(st.integers(1, 25), min_size=1, max_size=6))
    prompts = [[*range(n), i] for i, n in enumerate(lengths)]
    generations = submit_all(engine, [ask(p, 9, paced=True, priority=data.draw(st.integers(-1, 1))) for p in prompts])
    for prompt, generation in zip(prompts, generations, strict=True):
        assert [t.id for t in generation] == expected_greedy(prompt, 9, N_VOCAB)
    engine.check()
    assert not executable.generated & executable.given
    engine.close()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.lists(st.integers(2, 25), min_size=1, max_size=6))
def test_no_token_of_a_prompt_is_cut_off_alone(limits: list[int], lengths: list[int]) -> None:
    """A backend may compute one token in another way than several: what it becomes would depend on the chunks."""
    engine, executable = make(n_ctx=40, max_seqs=3, max_tokens=12)
    count = iter(range(1 << 30))
    engine.scheduler.pace.limit = lambda n: max(pacing._LEAST, limits[next(count) % len(limits)])  # type: ignore[method-assign]
    alone: list[int] = []

    def look(batch: Batch) -> None:
        alone.extend(
            first for first, n in batch.spans[: batch.n_seqs].tolist() if n == 1 and first >= batch.n_generated
        )

    executable.on_run = look
    prompts = [[i, *range(10, 9 + n)] for i, n in enumerate(lengths)]
    for prompt, generation in zip(prompts, submit_all(engine, [ask(p, 9, paced=True) for p in prompts]), strict=True):
        assert [t.id for t in generation] == expected_greedy(prompt, 9, N_VOCAB)
    assert not alone
    engine.close()
