"""Choosing of the largest logits alone gives the very token that all logits give, whenever so few are said to do."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pyllm.config import SamplingParams
from pyllm.errors import BackendError, RequestError
from pyllm.sampling import Sampler, TopLogits, logprobs

NOTHING = np.empty(0, np.int32)
GREEDY = SamplingParams(temperature=0)
N = 40


def largest(logits: NDArray[np.float32], n: int) -> TopLogits:
    """What a device would send, plainly."""
    known = np.where(np.isnan(logits), -np.inf, logits).astype(np.float32)
    ids = np.lexsort((np.arange(len(logits)), -known))[:n].astype(np.int32)
    with np.errstate(all="ignore"):
        log_sum = float(np.log(np.exp(logits.astype(np.float64)).sum()))
    return TopLogits(ids, known[ids], log_sum)


few = st.sampled_from([-2.0, -1.0, -0.0, 0.0, 0.5, 1.0, 1.5, 3.0])
wild = st.one_of(few, st.floats(-30, 30, width=32), st.sampled_from([math.nan, -math.inf, math.inf, 3e38, -3e38]))
lowering = st.builds(
    SamplingParams,
    logit_bias=st.dictionaries(st.integers(0, N - 1), st.one_of(st.just(-math.inf), st.floats(-9, 0)), max_size=4),
    top_k=st.integers(1, 8),
    typical_p=st.floats(0, 1),
    top_p=st.floats(0, 1),
    min_p=st.floats(0, 1),
    temperature=st.one_of(st.just(0.0), st.just(1.0), st.floats(0, 5)),
    repeat_penalty=st.one_of(st.just(1.0), st.floats(1, 4)),
    presence_penalty=st.one_of(st.just(0.0), st.floats(0, 5)),
    frequency_penalty=st.one_of(st.just(0.0), st.floats(0, 5)),
    repeat_last_n=st.integers(-1, 12),
    seed=st.integers(0, 2**64 - 1),
)


@given(
    st.lists(st.one_of(st.lists(few, min_size=N, max_size=N), st.lists(wild, min_size=N, max_size=N)), min_size=1),
    lowering,
    st.lists(st.integers(0, N - 1), max_size=20),
    st.integers(0, 5),
)
@settings(max_examples=400, deadline=None)
def test_the_same_tokens_as_of_all_logits(
    rows: list[list[float]], params: SamplingParams, seen: list[int], more: int
) -> None:
    whole, part = Sampler(params, N), Sampler(params, N)
    history = np.array(seen, np.int32)
    for row in rows[:4]:
        logits = np.array(row, np.float32)
        n = part.n_needed(history)
        assert n is not None
        with np.errstate(invalid="ignore"):
            expected = outcome(whole, logits, history)
            assert outcome(part, largest(logits, n + more), history) == expected
        if not isinstance(expected, int):
            return
        history = np.append(history, np.int32(expected))


def outcome(
    sampler: Sampler, logits: NDArray[np.float32] | TopLogits, seen: NDArray[np.int32]
) -> int | type[Exception]:
    try:
        return sampler(logits, seen)
    except (BackendError, RequestError) as error:
        return type(error)


@pytest.mark.parametrize(
    ("params", "n"),
    [
        (GREEDY, 1),
        (replace(GREEDY, repeat_penalty=1.1), 4),
        (replace(GREEDY, repeat_penalty=1.1, repeat_last_n=2), 3),
        (replace(GREEDY, presence_penalty=1, repeat_last_n=0), 1),
        (replace(GREEDY, logit_bias={9: -math.inf, 8: -1.0, 7: 0.0}, frequency_penalty=0.1), 7),
        (replace(GREEDY, logit_bias={9: 1e-9}), None),
        (replace(GREEDY, repeat_penalty=0.9), None),
        (replace(GREEDY, presence_penalty=-0.1), None),
        (replace(GREEDY, frequency_penalty=-0.1), None),
        (replace(GREEDY, frequency_penalty=-0.1, repeat_last_n=0), 1),
        (SamplingParams(), 40),
        (SamplingParams(top_k=5, repeat_penalty=1.1, typical_p=0.5, repeat_last_n=-1), 8),
        (SamplingParams(top_k=2000), 1000),
        (SamplingParams(top_k=0), None),
    ],
)
def test_how_many_are_needed(params: SamplingParams, n: int | None) -> None:
    assert Sampler(params, 1000).n_needed(np.array([3, 5, 3, 6, 5], np.int32)) == n


def test_fewer_than_needed_do_not_do() -> None:
    """The number is the least: with one fewer, another token may come."""
    params = replace(GREEDY, repeat_penalty=2.0)
    seen = np.array([4, 2], np.int32)
    logits = np.array([0.1, 0.2, 4.0, 3.0, 5.0], np.float32)
    sampler = Sampler(params, 5)
    assert sampler.n_needed(seen) == 3
    assert sampler(logits, seen) == sampler(largest(logits, 3), seen) == 3
    assert sampler(largest(logits, 2), seen) != 3


@pytest.mark.parametrize("n_top", [0, 1, 5, 64])
def test_logprobs_of_the_largest(n_top: int) -> None:
    logits = np.random.default_rng(n_top).normal(size=5000).astype(np.float32) * 4
    part = largest(logits, 64)
    own, top = logprobs(part, int(part.ids[17]), n_top)
    expected, expected_top = logprobs(logits, int(part.ids[17]), n_top)
    assert own == pytest.approx(expected, abs=1e-5)
    assert [i for i, _ in top] == [i for i, _ in expected_top]
    assert [p for _, p in top] == pytest.approx([p for _, p in expected_top], abs=1e-5)


@pytest.mark.parametrize("hostile", [math.nan, math.inf])
def test_logprobs_where_there_is_no_distribution(hostile: float) -> None:
    logits = np.array([1.0, hostile, 3.0], np.float32)
    part = largest(logits, 2)._replace(log_sum=math.nan)
    assert math.isnan(logprobs(part, 2, 1)[0])
    assert math.isnan(logprobs(logits, 2, 1)[0])
