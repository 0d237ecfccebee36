"""Perplexity against a plain computation of the same definition, on an engine that answers from a table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllm.errors import RequestError
from pyllm.perplexity import perplexity, window_nll

N_VOCAB = 11
BOS = 1


class TableEngine:
    """The logits after a token depend on that token and on the one at the start of the window."""

    def __init__(self, block: int) -> None:
        self.table = np.random.default_rng(5).normal(0, 3, (N_VOCAB, N_VOCAB)).astype(np.float32)
        self.block = block

    def iter_logits(self, tokens: Sequence[int]) -> Iterator[np.ndarray]:
        rows = self.table[np.asarray(tokens)] + self.table[tokens[0]]
        for i in range(0, len(rows), self.block):
            yield rows[i : i + self.block]


def fake_llm(block: int, adds_bos: bool) -> Any:
    tokenizer = SimpleNamespace(bos_id=BOS, add_bos=adds_bos)
    return SimpleNamespace(n_ctx=64, engine=TableEngine(block), tokenizer=tokenizer, has_tokenizer=True)


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


@settings(max_examples=30)
@given(
    st.integers(6, 20),
    st.integers(1, 4),
    st.integers(1, 7),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_is_the_definition(n_ctx: int, n_windows: int, block: int, adds_bos: bool, random: Any) -> None:
    llm = fake_llm(block, adds_bos)
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
    ("n_tokens", "n_ctx", "n_windows"), [(15, 8, None), (100, 65, None), (100, 2, None), (100, 8, 0)]
)
def test_refusals(n_tokens: int, n_ctx: int, n_windows: int | None) -> None:
    with pytest.raises(RequestError):
        perplexity(fake_llm(8, True), [1] * n_tokens, n_ctx, n_windows)


def test_large_logits_do_not_overflow() -> None:
    rows = np.array([[1000.0, 0.0], [-1000.0, -1000.0]], np.float32)
    np.testing.assert_allclose(window_nll([rows], np.array([0, 1])), [0.0, math.log(2)])
    with pytest.raises(ValueError, match="1 rows"):
        window_nll([rows[:1]], np.array([0, 1]))
