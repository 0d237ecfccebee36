"""The thread that computes: there while there is work, gone when there is none; slow readers, event loops, forks."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
from engine_fakes import FakeExecutable, expected_greedy, submit_all

from pyllm.backends.base import Batch
from pyllm.config import SamplingParams
from pyllm.engine import Engine, GenerationRequest, pump
from pyllm.engine.wakes import LoopBell

N_VOCAB = 50
GREEDY = SamplingParams(temperature=0)
LONG = 300.0


def make(n_ctx: int = 128, **options: int) -> tuple[Engine, FakeExecutable]:
    executable = FakeExecutable(N_VOCAB, **options)
    return Engine(executable, n_ctx=n_ctx, n_vocab=N_VOCAB), executable


def ask(tokens: list[int], n: int | None = 10, **more: object) -> GenerationRequest:
    return GenerationRequest(tokens, GREEDY, max_tokens=n, **more)  # type: ignore[arg-type]


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.001)


def test_the_thread_ends_when_idle_and_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pump, "LINGER", 0.01)
    engine, executable = make()
    threads: set[int] = set()
    executable.on_run = lambda batch: threads.add(threading.get_ident())
    for _ in range(3):
        assert [t.id for t in engine.submit(ask([1, 2], 5))] == expected_greedy([1, 2], 5, N_VOCAB)
        until(lambda: engine._pump._thread is None)
    assert threading.get_ident() not in threads


def test_requests_are_computed_though_nobody_reads() -> None:
    engine, _ = make()
    generation = engine.submit(ask([1, 2], 20))
    until(lambda: generation._seq.finish_reason)
    assert [t.id for t in generation] == expected_greedy([1, 2], 20, N_VOCAB)


def test_an_engine_that_nobody_holds_ends_its_thread() -> None:
    engine, _ = make()
    list(engine.submit(ask([1, 2])))
    thread, gone = engine._pump, weakref.ref(engine)
    assert thread._thread is not None
    del engine
    gc.collect()
    assert gone() is None
    until(lambda: thread._thread is None)


def test_a_slow_reader_costs_others_nothing() -> None:
    engine, executable = make(n_ctx=1024, n_pages=512, max_seqs=4)
    slow = engine.submit(ask([1], None, context_shift=True))
    until(lambda: slow._answer.back_pressured)
    made = slow._answer.n_generated
    runs = executable.n_runs
    assert [t.id for t in engine.submit(ask([2], 100))] == expected_greedy([2], 100, N_VOCAB)
    assert executable.n_runs - runs == 100
    assert slow._answer.n_generated == made
    assert next(slow).id == expected_greedy([1], 1, N_VOCAB)[0]
    until(lambda: slow._answer.n_generated > made)
    slow.cancel()


def test_event_loops_are_woken_once_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, executable = make()
    rung: list[int] = []
    ring = LoopBell.ring
    monkeypatch.setattr(LoopBell, "ring", lambda bell: (rung.append(executable.n_runs), ring(bell)))
    executable.on_run = lambda batch: time.sleep(0.002)

    async def read(generation: object) -> list[int]:
        out = []
        while (token := await generation.take_async()) is not None:  # type: ignore[attr-defined]
            out.append(token.id)
        return out

    async def main() -> list[list[int]]:
        generations = submit_all(engine, [ask([i], 20) for i in range(6)])
        return await asyncio.gather(*map(read, generations))

    results = [asyncio.run(main()) for _ in range(2)]  # two loops, one after the other
    assert results == [[expected_greedy([i], 20, N_VOCAB) for i in range(6)]] * 2
    assert len(rung) == len(set(rung)) <= 40


def test_several_event_loops_at_once() -> None:
    engine, _ = make()
    results: dict[int, list[int]] = {}

    def loop(i: int) -> None:
        async def main() -> None:
            generation = engine.submit(ask([i], 20))
            results[i] = []
            while (token := await generation.take_async()) is not None:
                results[i].append(token.id)

        asyncio.run(main())

    threads = [threading.Thread(target=loop, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert results == {i: expected_greedy([i], 20, N_VOCAB) for i in range(4)}


def test_a_task_that_is_cancelled_cancels_its_answer() -> None:
    engine, executable = make()
    entered = threading.Event()

    def slow(batch: Batch) -> None:
        entered.set()
        assert executable.stop.wait(LONG)
        raise KeyboardInterrupt

    executable.on_run = slow
    generation = engine.submit(ask([1], 20))

    async def main() -> None:
        task = asyncio.ensure_future(generation.take_async())
        await asyncio.to_thread(entered.wait, LONG)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert generation.finish_reason == "cancelled"
    executable.on_run = lambda batch: None
    engine.check()
    assert engine.pool.n_available == engine.pool.n_pages


def test_a_loop_that_was_closed_holds_up_nothing() -> None:
    engine, executable = make()
    leave = threading.Event()
    executable.on_run = lambda batch: leave.wait(LONG) and None
    loop = asyncio.new_event_loop()
    left = engine.submit(ask([1], 20))
    task = loop.create_task(left.take_async())
    loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()
    leave.set()
    assert [t.id for t in engine.submit(ask([2], 20))] == expected_greedy([2], 20, N_VOCAB)
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    left.cancel()


FORK = """
import os, sys, time
sys.path.insert(0, {folder!r})
from test_engine_pump import GREEDY, N_VOCAB, ask, expected_greedy, make
import pyllm
engine, executable = make()
executable.on_run = lambda batch: time.sleep(0.001)
mine = engine.submit(ask([1, 2], 60))
first = next(mine).id
if pid := os.fork():
    assert [first, *(t.id for t in mine)] == expected_greedy([1, 2], 60, N_VOCAB)
    assert os.waitpid(pid, 0)[1] == 0
else:
    executable._running = __import__("threading").Lock()  # the fake's own, which the parent's thread may have held
    try:
        list(mine)
        os._exit(1)
    except pyllm.ClosedError as error:
        assert "parent" in str(error)
    answer = [t.id for t in engine.submit(ask([3, 4], 20))]
    engine.check()
    os._exit(0 if answer == expected_greedy([3, 4], 20, N_VOCAB) else 2)
"""


def run_script(script: str) -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "PYTHONWARNINGS": "ignore"}
    subprocess.run(
        [sys.executable, "-c", script.format(folder=str(Path(__file__).parent))], check=True, timeout=LONG, env=env
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_gets_a_thread_of_its_own() -> None:
    run_script(FORK)


def test_the_interpreter_ends_while_a_step_runs() -> None:
    run_script(
        """
import sys, time
sys.path.insert(0, {folder!r})
from test_engine_pump import ask, make
engine, executable = make()
def endless(batch):
    assert executable.stop.wait(60)
    raise KeyboardInterrupt
executable.on_run = endless
left = engine.submit(ask([1], 20))
while not engine._in_run:
    time.sleep(0.001)
"""
    )
