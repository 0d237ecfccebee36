"""Ctrl-C wherever Python may notice it while the engine works: nothing is lost but the request that was waited for."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import pytest
from engine_fakes import FakeExecutable, expected_greedy

from pyllm.config import SamplingParams
from pyllm.engine import Engine, Generation, GenerationRequest

N_VOCAB = 50
PROMPTS = [[i, *range(6)] for i in range(4)]


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
    name = frame.f_globals.get("__name__", "")
    # What a lock's own `with` does on its way out is beyond a signal's reach, but not beyond the profiler's.
    return name.startswith(("pyllm.engine", "pyllm.cache", "pyllm.sampling")) and frame.f_code.co_name != "__exit__"


def run(moment: int) -> bool:
    """Whether there was such a moment."""
    engine = Engine(FakeExecutable(N_VOCAB, n_pages=10), n_ctx=40, n_vocab=N_VOCAB)
    greedy = SamplingParams(temperature=0)
    mine, *others = (engine.submit(GenerationRequest(p, greedy, max_tokens=9)) for p in PROMPTS)
    heads = [next(g).id for g in others[:2]]
    interrupted = _consume(mine, moment)
    engine.check()
    assert engine.lock.owner is None
    answers = [[t.id for t in g] for g in others]
    for i, head in enumerate(heads):
        answers[i].insert(0, head)
    assert answers == [expected_greedy(p, 9, N_VOCAB) for p in PROMPTS[1:]]
    engine.check()
    assert engine.pool.n_available == engine.pool.n_pages
    return interrupted


def _consume(generation: Generation, moment: int) -> bool:
    interrupt = InterruptAt(moment)
    sys.setprofile(interrupt)
    try:
        for _ in range(6):
            next(generation)
        generation.cancel()
    except KeyboardInterrupt:
        # As whoever reads a stream does; the interrupt may have come when next() was all but done.
        generation.cancel()
        return True
    finally:
        sys.setprofile(None)
    return False


@pytest.mark.parametrize("offset", range(8))
def test_interrupts_anywhere(offset: int) -> None:
    moment = 1 + offset
    while run(moment):
        moment += 37
    assert moment > 300
