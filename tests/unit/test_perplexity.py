"""Perplexity against a plain computation of the same definition, on an engine that answers from a table."""

from __future__ import annotations

import math
import statistics
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scoring_fakes import BOS, fake_llm

from pyllm.errors import ModelError, RequestError
from pyllm.evaluation.perplexity import perplexity
from pyllm.evaluation.scoring import Scorer

N_VOCAB = 11


def plain(llm: Any, tokens: list[int], n_ctx: int, n_windows: int, adds_bos: bool) -> tuple[float, float]:
    nll = []
    for k in range(n_windows):
        window = tokens[k * n_ctx : (k + 1) * n_ctx]
        start = BOS if adds_bos else window[0]
        for i in range(n_ctx // 2, n_ctx - 1):
            x = [float(v) for v in llm.engine.table[window[i]] + llm.engine.table[start]]
            nll.append(math.log(math.fsum(math.exp(v) for v in x)) - x[window[i + 1]])
    ppl = math.exp(statistics.fmean(nll))
    return ppl, ppl * math.sqrt(statistics.pvariance(nll) / (len(nll) - 1))


@settings(max_examples=30, deadline=None)
@given(
    st.integers(6, 20),
    st.integers(1, 4),
    st.integers(1, 7),
    st.integers(1, 3),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_is_the_definition(n_ctx: int, n_windows: int, block: int, side: int, adds_bos: bool, random: Any) -> None:
    llm = fake_llm(block, adds_bos, side=side)
    tokens = [random.randrange(N_VOCAB) for _ in range(n_ctx * 5 + 3)]
    estimates = list(perplexity(llm, tokens, n_ctx, n_windows))
    assert [e.n_windows for e in estimates] == list(range(1, n_windows + 1))
    ppl, error = plain(llm, tokens, n_ctx, n_windows, adds_bos)
    assert estimates[-1].n_total == n_windows
    assert estimates[-1].n_scored == n_windows * (n_ctx - 1 - n_ctx // 2)
    assert estimates[-1].ppl == pytest.approx(ppl, rel=1e-5)
    assert estimates[-1].error == pytest.approx(error, rel=1e-3, abs=1e-4 * ppl)


def test_all_windows_by_default() -> None:
    estimates = list(perplexity(fake_llm(8, False), [1, 2, 3, 4] * 25, 8))
    assert len(estimates) == estimates[0].n_total == 12


def test_closing_line() -> None:
    *_, last = perplexity(fake_llm(8, True), [1, 2, 3, 4] * 25, 8, 3)
    assert str(last) == f"Final estimate: PPL = {last.ppl:.4f} +/- {last.error:.5f}"


@pytest.mark.parametrize(
    ("n_tokens", "n_ctx", "n_windows", "says"),
    [
        (15, 8, None, "15 tokens.*two windows of 8"),
        (100, 65, None, "4 to 64"),
        (100, 2, None, "4 to 64"),
        (100, 8, 0, "at least one"),
    ],
)
def test_refusals(n_tokens: int, n_ctx: int, n_windows: int | None, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        perplexity(fake_llm(8, True), [1] * n_tokens, n_ctx, n_windows)


@pytest.mark.parametrize("n_vocab", [1, 15, 16, 17, 1024, 3001])
def test_rows_are_scored_exactly(n_vocab: int) -> None:
    random = np.random.default_rng(n_vocab)
    # Rows in a wider array, as backends give them, with rubbish behind.
    wide = np.full((7, n_vocab + 5), np.nan, np.float32)
    rows = wide[:, :n_vocab]
    rows[:] = random.normal(0, 5, rows.shape)
    rows[3, rows.shape[1] // 2] = rows[3].max()
    targets = random.integers(0, n_vocab, 7).astype(np.int32)
    with Scorer(2) as scorer:
        got = scorer.score(rows, targets)
    exact = rows.astype(np.float64)
    log_sum = np.log(np.exp(exact - exact.max(axis=1, keepdims=True)).sum(axis=1)) + exact.max(axis=1)
    np.testing.assert_allclose(got.log_sum, log_sum, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(got.nll, log_sum - exact[np.arange(7), targets], rtol=1e-5, atol=2e-6)
    np.testing.assert_array_equal(got.best, rows.argmax(axis=1))


def test_large_logits_do_not_overflow() -> None:
    rows = np.array([[1000.0, 0.0], [-1000.0, -1000.0]], np.float32)
    with Scorer(1) as scorer:
        np.testing.assert_allclose(scorer.score(rows, np.array([0, 1])).nll, [0.0, math.log(2)], rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 5, 18])
def test_logits_that_are_no_numbers(value: float, place: int) -> None:
    rows = np.zeros((3, 19), np.float32)
    rows[1, place] = value
    with Scorer(1) as scorer, pytest.raises(ModelError, match="no numbers"):
        scorer.score(rows, np.array([1, 1, 1]))
