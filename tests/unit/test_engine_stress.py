"""Many streams at once with cancels, slow readers, deadlines and priorities: each gets what it gets alone."""

from __future__ import annotations

import asyncio
import random
import threading
from typing import Any

import pytest
from engine_fakes import FakeExecutable, PausingExecutable, expected_greedy

from pyllm.config import SamplingParams
from pyllm.engine import Engine, GenerationRequest

N_VOCAB = 50
GREEDY = SamplingParams(temperature=0)
LONG = 300.0


def request(rng: random.Random) -> GenerationRequest:
    return GenerationRequest(
        [*range(rng.choice([0, 5, 9])), *(rng.randrange(N_VOCAB) for _ in range(rng.randrange(1, 12)))],
        GREEDY,
        max_tokens=rng.randrange(1, 25),
        unread=rng.choice([1, 2, None]),
        paced=rng.random() < 0.5,
        priority=rng.randrange(3),
        timeout=rng.choice([None, None, None, 0.01]),
    )


def check(asked: GenerationRequest, got: list[int], left: bool, reason: str | None) -> None:
    expected = expected_greedy(list(asked.tokens), asked.max_tokens or 0, N_VOCAB)
    assert got == expected[: len(got)]
    assert len(got) == len(expected) or left or reason == "timeout"


def read(engine: Engine, seed: int, n: int) -> None:
    rng = random.Random(seed)
    for _ in range(n):
        asked = request(rng)
        generation = engine.submit(asked)
        got: list[int] = []
        stop = rng.choice([None, None, 0, 3])
        while len(got) != stop and (token := next(generation, None)) is not None:
            got.append(token.id)
            if rng.random() < 0.1:
                threading.Event().wait(0.002)
        left = len(got) == stop
        if left and rng.random() < 0.5:
            generation.cancel()
        check(asked, got, left, generation.finish_reason)
        del generation


async def collect(generation: Any, got: list[int]) -> None:
    while (token := await generation.take_async()) is not None:
        got.append(token.id)


async def read_all(engine: Engine, seed: int, n_tasks: int, n: int) -> None:
    async def one(rng: random.Random) -> None:
        for _ in range(n):
            asked = request(rng)
            generation = engine.submit(asked)
            got: list[int] = []
            late = False
            try:
                await asyncio.wait_for(collect(generation, got), rng.choice([None, None, 0.005]))
            except TimeoutError:
                late = True
            assert generation.finish_reason is not None
            check(asked, got, late, generation.finish_reason)

    await asyncio.gather(*(one(random.Random(seed + i)) for i in range(n_tasks)))


@pytest.mark.parametrize("kind", [FakeExecutable, PausingExecutable])
@pytest.mark.parametrize("n_pages", [30, 200])
@pytest.mark.parametrize("n_slots", [0, 15, 40])
def test_each_stream_gets_what_it_gets_alone(n_slots: int, n_pages: int, kind: type[FakeExecutable]) -> None:
    executable = kind(N_VOCAB, n_pages=n_pages, n_slots=n_slots, max_seqs=6, max_tokens=20)
    engine = Engine(executable, n_ctx=60, n_vocab=N_VOCAB)
    errors: list[BaseException] = []

    def run(work: Any) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    works = [
        *(lambda i=i: read(engine, i, 12) for i in range(12)),
        *(lambda i=i: asyncio.run(read_all(engine, 1000 * i, 16, 4)) for i in range(1, 3)),
        lambda: [engine.logits(list(range(30))) for _ in range(10)],
    ]
    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert not any(thread.is_alive() for thread in threads)
    assert not errors, errors[0]
    engine.check()
    assert engine.pool.n_available == engine.pool.n_pages
    assert not engine._live
    if isinstance(executable, PausingExecutable):
        assert len(executable.beside) > executable.n_begun > 0
    engine.close()
