"""Ctrl-C wherever Python may notice it in a thread that reads: nothing is lost but the request that was waited for."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

import pytest
from engine_fakes import FakeExecutable, expected_greedy, submit_all

from pyllm.backends.base import Batch
from pyllm.config import SamplingParams
from pyllm.engine import Engine, Generation, GenerationRequest

N_VOCAB = 50
PROMPTS = [[i, *range(6)] for i in range(4)]
GREEDY = SamplingParams(temperature=0)
LONG = 300.0


class InterruptAt:
    """Raises KeyboardInterrupt at the n-th moment: where a function begins, or a call from the engine is over."""

    def __init__(self, moment: int) -> None:
        self.moment = moment
        self.count = 0

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event not in ("call", "c_return") or not _ours(frame):
            return
        self.count += 1
        if self.count == self.moment:
            sys.setprofile(None)
            raise KeyboardInterrupt


def _ours(frame: FrameType) -> bool:
    return frame.f_globals.get("__name__", "").startswith(("pyllm.engine", "pyllm.cache", "pyllm.sampling"))


def run(moment: int) -> bool:
    """Whether there was such a moment."""
    engine = Engine(FakeExecutable(N_VOCAB, n_pages=10), n_ctx=40, n_vocab=N_VOCAB)
    others = submit_all(engine, [GenerationRequest(p, GREEDY, max_tokens=9) for p in PROMPTS[1:]])
    heads = [next(g).id for g in others[:2]]
    interrupted = _consume(engine, moment)
    answers = [[t.id for t in g] for g in others]
    for i, head in enumerate(heads):
        answers[i].insert(0, head)
    assert answers == [expected_greedy(p, 9, N_VOCAB) for p in PROMPTS[1:]]
    engine.check()
    assert engine.pool.n_available == engine.pool.n_pages
    engine.close()
    return interrupted


def _consume(engine: Engine, moment: int) -> bool:
    interrupt = InterruptAt(moment)
    generation: Generation[Any] | None = None
    sys.setprofile(interrupt)
    try:
        generation = engine.submit(GenerationRequest(PROMPTS[0], GREEDY, max_tokens=9))
        for _ in range(6):
            next(generation)
        generation.cancel()
    except KeyboardInterrupt:
        # As whoever reads a stream does; the interrupt may have come when next() was all but done.
        if generation is not None:
            generation.cancel()
        return True
    finally:
        sys.setprofile(None)
    return False


@pytest.mark.parametrize("offset", range(4))
def test_interrupts_anywhere(offset: int) -> None:
    moment = 1 + offset
    while run(moment):
        moment += 4
    assert moment > 60


@pytest.mark.skipif(os.name == "nt", reason="signals of the kind are POSIX's")
def test_ctrl_c_while_waiting_stops_the_step() -> None:
    executable = FakeExecutable(N_VOCAB)
    engine = Engine(executable, n_ctx=40, n_vocab=N_VOCAB)
    entered = threading.Event()

    def endless(batch: Batch) -> None:
        entered.set()
        assert executable.stop.wait(LONG)
        raise KeyboardInterrupt

    def strike() -> None:
        assert entered.wait(LONG)
        moments.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    moments: list[float] = []
    for wait in (
        lambda: list(engine.submit(GenerationRequest([1, 2], GREEDY, max_tokens=9))),
        lambda: engine.logits([1, 2, 3]),
        lambda: list(engine.iter_logits([1, 2, 3])),
        lambda: list(engine.score([([1, 2, 3], lambda at, rows: None)])),
    ):
        entered.clear()
        executable.on_run = endless
        thread = threading.Thread(target=strike)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            wait()
        thread.join(LONG)
        executable.on_run = lambda batch: None
        engine.check()
        assert engine.pool.n_available == engine.pool.n_pages
        assert [t.id for t in engine.submit(GenerationRequest([9], GREEDY, max_tokens=5))] == expected_greedy(
            [9], 5, N_VOCAB
        )
