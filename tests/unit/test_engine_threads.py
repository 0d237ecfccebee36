"""Several threads at one engine: each gets its own tokens, none waits for ever."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
from engine_fakes import FakeExecutable, expected_greedy, expected_row, submit_all

from pyllm.backends.base import Batch
from pyllm.config import SamplingParams
from pyllm.engine import Engine, GenerationRequest
from pyllm.errors import ClosedError

GREEDY = SamplingParams(temperature=0)
N_VOCAB = 50
LONG = 300.0
"""Seconds after which a test is taken to hang."""


def make(**options: int) -> tuple[Engine, FakeExecutable]:
    executable = FakeExecutable(N_VOCAB, **options)
    return Engine(executable, n_ctx=128, n_vocab=N_VOCAB), executable


def ask(tokens: list[int], n: int) -> GenerationRequest:
    return GenerationRequest(tokens, GREEDY, max_tokens=n)


def together(tasks: list[Callable[[], object]]) -> list[object]:
    with ThreadPoolExecutor(len(tasks)) as pool:
        futures = [pool.submit(task) for task in tasks]
        _, late = wait(futures, LONG)
        assert not late, "threads hang"
        return [f.result() for f in futures]


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.001)


def test_each_thread_gets_its_own_tokens() -> None:
    engine, executable = make(n_pages=40)
    executable.on_run = lambda batch: time.sleep(0.0005)

    def answers(i: int) -> list[list[int]]:
        return [[t.id for t in engine.submit(ask([*range(9), i, j], 12))] for j in range(3)]

    def rows(i: int) -> list[float]:
        return [float(engine.logits([*range(9), i])[-1].sum()) for _ in range(3)]

    results = together([*(lambda i=i: answers(i) for i in range(6)), *(lambda i=i: rows(i) for i in range(2))])  # type: ignore[misc]
    for i in range(6):
        assert results[i] == [expected_greedy([*range(9), i, j], 12, N_VOCAB) for j in range(3)]
    for i in range(2):
        assert results[6 + i] == [float(expected_row([*range(9), i], N_VOCAB).sum())] * 3
    engine.check()
    assert engine.pool.n_available == engine.pool.n_pages
    assert executable.n_runs < 8 * 3 * 14


def test_steps_are_shared() -> None:
    engine, executable = make()
    start = threading.Barrier(4)
    executable.on_run = lambda batch: time.sleep(0.001)
    generations = submit_all(engine, [ask([i], 30) for i in range(4)])

    def consume(i: int) -> list[int]:
        start.wait()
        return [t.id for t in generations[i]]

    assert together([lambda i=i: consume(i) for i in range(4)]) == [  # type: ignore[misc]
        expected_greedy([i], 30, N_VOCAB) for i in range(4)
    ]
    assert executable.n_runs == 30


def test_a_busy_consumer_starves_nobody() -> None:
    engine, executable = make()
    executable.on_run = lambda batch: time.sleep(0.0002)
    stop = threading.Event()
    idle: list[bool] = []

    def busy() -> None:
        while not stop.is_set():
            next(engine.submit(ask([1, 2], 100)))

    threads = [threading.Thread(target=busy) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        start = time.monotonic()
        assert engine.logits(list(range(40))).shape == (40, N_VOCAB)
        for _ in range(20):
            engine.between_steps(lambda: idle.append(not executable._running.locked()))
        assert idle == [True] * 20
        assert [t.id for t in engine.submit(ask([4], 20))] == expected_greedy([4], 20, N_VOCAB)
        assert time.monotonic() - start < LONG
    finally:
        stop.set()
        for thread in threads:
            thread.join(LONG)
    assert not any(thread.is_alive() for thread in threads)


def test_cancel_from_another_thread_wakes_who_waits_and_stops_the_step() -> None:
    engine, executable = make()
    entered = threading.Event()

    def slow(batch: Batch) -> None:
        entered.set()
        if executable.stop.wait(LONG):
            raise KeyboardInterrupt

    executable.on_run = slow
    generation = engine.submit(ask([1], 50))
    thread = threading.Thread(target=lambda: list(generation))
    thread.start()
    assert entered.wait(LONG)
    generation.cancel()
    thread.join(LONG / 2)
    assert not thread.is_alive()
    executable.on_run = lambda batch: None
    engine.check()
    assert engine.pool.n_available == engine.pool.n_pages
    assert generation.finish_reason == "cancelled"


def test_cancelling_one_does_not_stop_the_step_of_others() -> None:
    engine, executable = make()
    entered, leave = threading.Event(), threading.Event()

    def slow(batch: Batch) -> None:
        entered.set()
        assert leave.wait(LONG)
        assert not executable.stop.is_set()

    executable.on_run = slow
    one, other = submit_all(engine, [ask([1], 5), ask([2], 5)])
    got: list[int] = []
    thread = threading.Thread(target=lambda: got.extend(t.id for t in other))
    thread.start()
    assert entered.wait(LONG)
    one.cancel()
    assert next(one, None) is None
    leave.set()
    thread.join(LONG)
    assert got == expected_greedy([2], 5, N_VOCAB)
    engine.check()
    assert engine.pool.n_available == engine.pool.n_pages


def test_close_ends_what_other_threads_wait_for() -> None:
    engine, executable = make()
    entered = threading.Event()

    def slow(batch: Batch) -> None:
        entered.set()
        if executable.stop.wait(LONG):
            raise KeyboardInterrupt

    executable.on_run = slow
    generations = submit_all(engine, [ask([i], 50) for i in range(3)])
    errors: list[BaseException] = []

    def consume(i: int) -> None:
        try:
            list(generations[i])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=consume, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    assert entered.wait(LONG)
    engine.close()
    for thread in threads:
        thread.join(LONG / 2)
        assert not thread.is_alive()
    assert [type(error) for error in errors] == [ClosedError] * 3
    assert executable.closed == 1
    assert len({id(error) for error in errors}) == 3


def test_garbage_may_be_collected_at_any_point() -> None:
    engine, executable = make(n_pages=30)

    class Cycle:
        def __init__(self) -> None:
            self.me = self
            self.generation = engine.submit(ask([1, 2, 3, 4, 5, 6], 100))

    def collect(batch: Batch) -> None:
        gc.collect()

    gc.disable()
    try:
        for _ in range(5):
            cycle = Cycle()
            next(cycle.generation)
            executable.on_run = collect
            del cycle
            assert [t.id for t in engine.submit(ask([7, 8], 6))] == expected_greedy([7, 8], 6, N_VOCAB)
            executable.on_run = lambda batch: None
    finally:
        gc.enable()
    engine.check()
    assert engine.pool.n_available == engine.pool.n_pages


def test_a_result_that_is_kept_is_not_overwritten() -> None:
    engine, _ = make(max_rows=8)
    blocks = engine.iter_logits(list(range(16)))
    first = next(blocks)
    list(engine.submit(ask([3], 5)))
    next(blocks)
    np.testing.assert_array_equal(first, [expected_row(list(range(i + 1)), N_VOCAB) for i in range(8)])
    until(lambda: next(blocks, None) is None)
