"""Each step of sampling against a plain one in float64 that sorts everything, over few and over many logits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pyllm.sampling import logprobs, steps
from pyllm.sampling.select import Peaks, heaviest_set, lowest_set

SIZES = [1, 2, 63, 64, 1000, 4097, 20000, 49152 + 17]


def some_logits(kind: str, n: int) -> NDArray[np.float32]:
    random = np.random.default_rng(n)
    x = (
        random.normal(size=n)
        * {"flat": 0.3, "usual": 3.0, "peaked": 12.0, "ties": 2.0, "constant": 0.0, "masked": 3}[kind]
    )
    if kind == "ties":
        x = np.round(x * 2) / 2
    if kind == "masked":
        x[random.random(n) < 0.9] = -np.inf
        x[n // 2] = 1.0
    return x.astype(np.float32)


KINDS = ["flat", "usual", "peaked", "ties", "constant", "masked"]
crossed = pytest.mark.parametrize(("kind", "n"), [(kind, n) for kind in KINDS for n in SIZES])


def candidates(logits: NDArray[np.float32]) -> steps.Candidates:
    return steps.Candidates(logits, None, float(logits.max()))


def probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    e = np.exp(logits.astype(np.float64) - float(logits.max()))
    return e / e.sum()


def ids_of(c: steps.Candidates, logits: NDArray[np.float32]) -> NDArray[np.intp]:
    """The ids, having made sure that logits belong to them."""
    assert c.ids is not None
    np.testing.assert_array_equal(c.logits, logits[c.ids])
    assert len(set(c.ids.tolist())) == len(c.ids)
    assert c.top == c.logits.max()
    if c.ordered:
        assert (c.logits[1:] <= c.logits[:-1]).all()
    return c.ids


@crossed
@pytest.mark.parametrize("k", [1, 2, 40, 700])
def test_top_k(kind: str, n: int, k: int) -> None:
    logits = some_logits(kind, n)
    c = steps.top_k(candidates(logits), k)
    assert c.ordered
    expected = np.lexsort((np.arange(n), -logits))[:k]
    np.testing.assert_array_equal(ids_of(c, logits), expected)


@crossed
@pytest.mark.parametrize("p", [0.0, 0.01, 0.5, 0.95, 0.9999])
def test_top_p(kind: str, n: int, p: float) -> None:
    logits = some_logits(kind, n)
    prob = probabilities(logits)
    for c in (
        steps.top_p(candidates(logits), p),
        steps.top_p(candidates(logits), p, Peaks(logits)),
        steps.top_p(steps.top_k(candidates(logits), n), p),
    ):
        ids = ids_of(c, logits)
        mass = prob[ids].sum()
        assert mass >= p - 2e-5
        assert len(ids) == 1 or mass - prob[ids].min() < p + 2e-5
        outside = np.delete(logits, ids)
        assert not len(outside) or outside.max() <= c.logits.min()


@crossed
@pytest.mark.parametrize("p", [0.001, 0.05, 0.5, 1.0])
def test_min_p(kind: str, n: int, p: float) -> None:
    logits = some_logits(kind, n)
    expected = np.flatnonzero(logits >= np.float32(logits.max() + np.log(p)))
    for c in (
        steps.min_p(candidates(logits), p),
        steps.min_p(candidates(logits), p, Peaks(logits)),
        steps.min_p(steps.top_k(candidates(logits), n), p),
    ):
        np.testing.assert_array_equal(np.sort(ids_of(c, logits)), expected)


@crossed
@pytest.mark.parametrize("p", [0.0, 0.2, 0.9, 0.999])
def test_typical(kind: str, n: int, p: float) -> None:
    logits = some_logits(kind, n)
    prob = probabilities(logits)
    with np.errstate(divide="ignore", invalid="ignore"):
        surprise = -np.log(prob)
        score = np.abs(surprise - np.where(prob > 0, prob * surprise, 0).sum())
    ids = ids_of(steps.typical(candidates(logits), p), logits)
    mass = prob[ids].sum()
    assert mass >= p - 2e-5
    assert len(ids) == 1 or mass - prob[ids].max() < p + 2e-5 or mass - prob[ids[score[ids].argmax()]] < p + 2e-5
    outside = np.delete(score, ids)
    assert not len(outside) or score[ids].max() <= outside.min() + 1e-4


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=60), st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_sets_are_as_small_as_can_be(weights: list[float], share: float) -> None:
    w = np.array(weights, np.float32)
    mass = share * float(w.sum())
    heaviest = heaviest_set(w, mass)
    cut = w[np.argsort(-w, kind="stable")].cumsum(dtype=np.float64).searchsorted(mass) + 1
    assert len(heaviest) == min(cut, len(w))
    np.testing.assert_array_equal(np.sort(heaviest), np.sort(np.argsort(-w, kind="stable")[:cut]))
    score = 1 - w
    lowest = lowest_set(score, w, mass)
    order = np.argsort(score, kind="stable")
    np.testing.assert_array_equal(lowest, order[: w[order].cumsum(dtype=np.float64).searchsorted(mass, "right") + 1])


@crossed
def test_draw_gives_each_token_its_share_of_the_quantiles(kind: str, n: int) -> None:
    logits = some_logits(kind, n)
    prob = probabilities(logits)
    c = candidates(logits)
    drawn = np.array([steps.draw(c, (i + 0.5) / 1000) for i in range(1000)])
    assert (prob[drawn] > 0).all()
    # Tokens have adjacent ranges of quantiles, in some order: no count is off by more than one.
    for token in np.argsort(-prob)[:20]:
        assert abs((drawn == token).sum() - 1000 * prob[token]) <= 1 + 1e-2
    assert prob[steps.draw(c, 0.0)] > 0
    assert prob[steps.draw(c, np.nextafter(1.0, 0.0))] > 0


def test_temperature() -> None:
    logits = np.array([1.0, 3.0, -np.inf, 2.0], np.float32)
    c = steps.temperature(candidates(logits), 0.5)
    np.testing.assert_allclose(c.weights(), np.exp([-4.0, 0.0, -np.inf, -2.0]), rtol=1e-6)
    for tiny in (1e-30, 1e-45, 5e-324):
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(steps.temperature(candidates(logits), tiny).weights(), [0, 1, 0, 0])


def test_penalties_are_llama_cpps() -> None:
    logits = np.array([2.0, -2.0, 4.0, 1.0, 0.0], np.float32)
    seen = np.array([0, 1, 1, 4], np.int32)
    got = steps.penalties(logits, seen, repeat=2.0, presence=0.25, frequency=0.5)
    np.testing.assert_array_equal(got, np.array([1 - 0.75, -4 - 1.25, 4, 1, -0.75], np.float32))
    np.testing.assert_array_equal(logits, np.array([2, -2, 4, 1, 0], np.float32))
    assert steps.penalties(logits, seen[:0], 2.0, 1.0, 1.0) is logits


def test_logit_bias() -> None:
    logits = np.array([1.0, 2.0, 3.0], np.float32)
    got = steps.logit_bias(logits, np.array([2, 0]), np.array([-np.inf, 0.5], np.float32))
    assert got.tolist() == [1.5, 2.0, -np.inf]
    assert logits.tolist() == [1.0, 2.0, 3.0]


def test_logprobs_of_no_distribution_are_nan() -> None:
    for n in (4, 9000):
        for broken in (np.nan, np.inf, -np.inf):
            chosen, _ = logprobs(np.full(n, broken, np.float32), 1, 2)
            assert np.isnan(chosen)


@crossed
def test_logprobs(kind: str, n: int) -> None:
    logits = some_logits(kind, n)
    with np.errstate(divide="ignore"):
        expected = np.log(probabilities(logits))
    best = np.lexsort((np.arange(n), -logits))[:5]
    token = n // 2
    chosen, top = logprobs(logits, token, 5)
    assert chosen == pytest.approx(expected[token], abs=2e-5)
    assert [i for i, _ in top] == best.tolist()
    assert [p for _, p in top] == pytest.approx(expected[best], abs=2e-5)
    assert logprobs(logits, token, 0)[1] == []
