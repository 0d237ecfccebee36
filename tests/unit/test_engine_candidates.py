"""The engine on an executable that can give the largest logits alone: asked for when they do, and nothing changes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from engine_fakes import FakeExecutable, submit_all

from pyllm.backends.base import Batch
from pyllm.config import SamplingParams
from pyllm.engine import Engine, GenerationRequest
from pyllm.sampling.top_logits import TopLogits

N_VOCAB = 50
GREEDY = SamplingParams(temperature=0)


class Few(FakeExecutable):
    """Gives candidates, plainly computed; notes what it was asked for."""

    def __init__(self, n_candidates: int, **options: int) -> None:
        super().__init__(N_VOCAB, **options)
        self.n_candidates = n_candidates

    def _result(self, batch: Batch, want: Any) -> Any:
        if want != "candidates":
            return super()._result(batch, want)
        logits = super()._result(batch, "logits")
        ids = np.argsort(-logits, axis=1, kind="stable")[:, : self.n_candidates].astype(np.int32)
        log_sum = np.log(np.exp(logits.astype(np.float64)).sum(axis=1)).astype(np.float32)
        return TopLogits(ids, np.take_along_axis(logits, ids, axis=1), log_sum)


def answers(executable: FakeExecutable, requests: list[GenerationRequest]) -> list[Any]:
    engine = Engine(executable, n_ctx=128, n_vocab=N_VOCAB)
    generations = submit_all(engine, requests)
    return [list(generation) for generation in generations]


def request(sampling: SamplingParams, start: int = 0, logprobs: int | None = None) -> GenerationRequest:
    return GenerationRequest(tokens=list(range(start, start + 5)), sampling=sampling, max_tokens=12, logprobs=logprobs)


SAMPLINGS = {
    "greedy": GREEDY,
    "greedy, forbidden": replace(GREEDY, logit_bias=dict.fromkeys(range(0, 12, 2), -math.inf)),
    "top_k": SamplingParams(top_k=12, temperature=1.5, seed=7),
    "top_k, penalties": SamplingParams(top_k=4, repeat_penalty=1.5, repeat_last_n=6, temperature=2.0, seed=8),
}


@pytest.mark.parametrize("name", SAMPLINGS)
def test_candidates_where_they_do(name: str) -> None:
    executable = Few(12)
    requests = [request(SAMPLINGS[name])]
    assert answers(executable, requests) == answers(FakeExecutable(N_VOCAB), requests)
    assert set(executable.asked) == {("candidates",)}


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(top_k=13, seed=1),
        SamplingParams(top_k=0, seed=1),
        replace(GREEDY, logit_bias={3: 5.0}),
        replace(GREEDY, repeat_penalty=1.1, repeat_last_n=20),
    ],
)
def test_logits_where_candidates_do_not_do(sampling: SamplingParams) -> None:
    executable = Few(12)
    requests = [replace(request(sampling), tokens=list(range(20)))]
    assert answers(executable, requests) == answers(FakeExecutable(N_VOCAB), requests)
    assert executable.asked[-1] == ("logits",)


def test_one_row_that_needs_all_logits_gets_them_for_the_step() -> None:
    requests = [request(SAMPLINGS["top_k"], 1), replace(request(SamplingParams(top_k=0, seed=2), 9), max_tokens=4)]
    executable = Few(12)
    assert answers(executable, requests) == answers(FakeExecutable(N_VOCAB), requests)
    assert executable.asked == [("logits",)] * 4 + [("candidates",)] * 8


def test_log_probabilities_of_candidates() -> None:
    executable = Few(12)
    (got,) = answers(executable, [request(SAMPLINGS["top_k"], logprobs=12)])
    (expected,) = answers(FakeExecutable(N_VOCAB), [request(SAMPLINGS["top_k"], logprobs=12)])
    assert set(executable.asked) == {("candidates",)}
    for a, b in zip(got, expected, strict=True):
        assert a.id == b.id
        assert a.logprob == pytest.approx(b.logprob, abs=1e-5)
        assert [i for i, _ in a.top] == [i for i, _ in b.top]
        assert [p for _, p in a.top] == pytest.approx([p for _, p in b.top], abs=1e-5)
    answers(executable, [request(SAMPLINGS["top_k"], logprobs=13)])
    assert executable.asked[-1] == ("logits",)


def test_scoring_gets_all_logits() -> None:
    executable = Few(12)
    engine = Engine(executable, n_ctx=128, n_vocab=N_VOCAB)
    expected = Engine(FakeExecutable(N_VOCAB), n_ctx=128, n_vocab=N_VOCAB).logits(list(range(9)))
    np.testing.assert_array_equal(engine.logits(list(range(9))), expected)
    assert set(executable.asked) == {("logits",)}
    engine.hidden([1, 2])
    assert executable.asked[-1] == ("hidden",)
