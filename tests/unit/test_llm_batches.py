"""Several answers at once: `n`, `best_of`, batch jobs; and what is reported of prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyllm
from arch_models import ArchModel

MODEL = ArchModel.load("llama-dense")
PROMPT = MODEL.tokens[:10]


@pytest.fixture(scope="module")
def llm(arch_file: Callable[[str], Path]) -> Iterator[pyllm.LLM]:
    with pyllm.load(arch_file("llama-dense"), backend="reference", n_ctx=128, kv_dtype="f32", max_seqs=4) as llm:
        yield llm


def sampled(llm: pyllm.LLM, seed: int, **options: Any) -> pyllm.Completion:
    return llm.complete(PROMPT, max_tokens=8, temperature=2.0, top_k=0, seed=seed, ignore_eos=True, **options)


def test_answers_of_one_prompt_are_those_of_its_seeds(llm: pyllm.LLM) -> None:
    several = sampled(llm, 7, n=3)
    assert [c.tokens for c in several.choices] == [sampled(llm, seed).tokens for seed in (7, 8, 9)]
    assert several.logprobs is None
    assert [len(c.choices) for c in several.choices] == [3, 1, 1]


def test_the_best_answers_are_those_of_the_highest_mean_logprob(llm: pyllm.LLM) -> None:
    every = [sampled(llm, seed, logprobs=0) for seed in range(20, 26)]
    mean = {c.tokens: np.mean([t.logprob for t in c.logprobs or ()]) for c in every}
    ranked = sorted(mean, key=lambda tokens: -mean[tokens])
    assert [c.tokens for c in sampled(llm, 20, n=2, best_of=6).choices] == ranked[:2]


def test_streams_are_of_one_answer(llm: pyllm.LLM) -> None:
    for options in ({"n": 2}, {"best_of": 2}):
        with pytest.raises(pyllm.RequestError, match="whole answers"):
            llm.complete(PROMPT, stream=True, **options)  # type: ignore[call-overload]
    for options, words in (
        ({"n": 0}, "n must be 1"),
        ({"n": 3, "best_of": 2}, "best_of is 2"),
        ({"timeout": 0}, "timeout"),
    ):
        with pytest.raises(pyllm.RequestError, match=words):
            llm.complete(PROMPT, **options)  # type: ignore[call-overload]


def test_log_probabilities_of_a_prompt(llm: pyllm.LLM) -> None:
    for max_tokens in (0, 2):
        llm.complete(PROMPT, max_tokens=1)  # so that the prefix cache has it
        result = llm.complete(PROMPT, max_tokens=max_tokens, temperature=0, prompt_logprobs=2, ignore_eos=True)
        rows = llm.logits(PROMPT)[:-1].astype(np.float64)
        truth = rows - np.log(np.exp(rows).sum(axis=1))[:, None]
        assert result.prompt_logprobs is not None
        assert [t.id for t in result.prompt_logprobs] == PROMPT[1:]
        own = truth[np.arange(len(truth)), PROMPT[1:]]
        assert [t.logprob for t in result.prompt_logprobs] == pytest.approx(own, abs=1e-4)
        assert [[i for i, _, _ in t.top] for t in result.prompt_logprobs] == np.argsort(-truth)[:, :2].tolist()
        assert len(result.tokens) == max_tokens


def test_batches_of_any_length(llm: pyllm.LLM) -> None:
    prompts = [MODEL.tokens[i % 20 : i % 20 + 5] for i in range(60)]
    taken = 0
    done: list[tuple[int, int | None]] = []

    def feed() -> Iterator[list[int]]:
        nonlocal taken
        for prompt in prompts:
            taken += 1
            assert taken - len(done) <= 2 * 4 + 1, "prompts are taken as answers end"
            yield prompt

    found = dict(
        llm.generate(
            feed(), as_completed=True, max_tokens=3, temperature=0, progress=lambda n, total: done.append((n, total))
        )
    )
    assert done == [(i + 1, None) for i in range(60)]
    expected = [c.tokens for c in llm.generate(prompts, max_tokens=3, temperature=0)]
    assert [found[i].tokens for i in range(60)] == expected
    totals: list[int | None] = []
    assert len(llm.generate(prompts[:3], max_tokens=1, progress=lambda n, total: totals.append(total))) == 3
    assert totals == [3] * 3


def test_a_batch_that_is_left_leaves_nothing(llm: pyllm.LLM) -> None:
    job = llm.generate(iter([PROMPT] * 50), as_completed=True, max_tokens=50, ignore_eos=True)
    next(job)
    del job
    llm.engine.check()
    assert not llm.engine.scheduler.running
    with pytest.raises(pyllm.RequestError, match=r"prompts\[3\]"):
        llm.generate(iter([PROMPT, PROMPT, PROMPT, 5]), max_tokens=2)
    with pytest.raises(pyllm.RequestError, match=r"chat\(\) answers one chat"):
        llm.generate([{"role": "user", "content": "x"}])  # type: ignore[list-item]


def test_a_batch_waits_where_the_queue_is_full(arch_file: Callable[[str], Path]) -> None:
    with pyllm.load(arch_file("llama-dense"), backend="reference", n_ctx=64, max_seqs=2, max_waiting=0) as llm:
        assert len(llm.generate([PROMPT] * 9, max_tokens=2)) == 9
        with pytest.raises(pyllm.QueueFullError):
            llm.complete(PROMPT, n=3)


def test_a_timeout_ends_an_answer_with_what_there_is(llm: pyllm.LLM) -> None:
    result = llm.complete(PROMPT, max_tokens=None, ignore_eos=True, context_shift=True, timeout=0.3)
    assert result.finish_reason == "timeout"
    assert result.tokens
