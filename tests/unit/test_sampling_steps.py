"""Each step of sampling against its formula, over few and over many logits of several kinds."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sampling_oracle import OFF, adaptive_p, distribution, mirostat, probabilities

from pyllm.config import SamplingParams
from pyllm.errors import RequestError
from pyllm.sampling import Sampler, logprobs, steps

SIZES = [2, 63, 64, 1000, 20000, 49152 + 17]
NOTHING = np.empty(0, np.int32)


def some_logits(kind: str, n: int) -> NDArray[np.float32]:
    random = np.random.default_rng(n)
    scale = {"flat": 0.3, "usual": 3.0, "peaked": 12.0, "ties": 2.0, "constant": 0.0, "masked": 3.0, "lower": 0.5}
    x = random.normal(size=n) * scale[kind]
    if kind == "ties":
        x = np.round(x * 2) / 2
    if kind == "masked":
        x[random.random(n) < 0.9] = -np.inf
        x[n // 2] = 1.0
    if kind == "lower":  # some that stand out of many, as most models have it
        x[random.permutation(n)[: n // 10 + 1]] += random.exponential(4, n // 10 + 1)
    return x.astype(np.float32)


KINDS = ["flat", "usual", "peaked", "ties", "constant", "masked", "lower"]
crossed = pytest.mark.parametrize(("kind", "n"), [(kind, n) for kind in KINDS for n in SIZES])


def drawn_at(sampler: Sampler, logits: NDArray[np.float32], u: float, seen: NDArray[np.int32] = NOTHING) -> int:
    """The token at quantile u."""
    sampler._number = u
    return sampler(logits, seen)


def assert_quantiles(p: SamplingParams, logits: NDArray[np.float32], expected: NDArray[np.float64]) -> None:
    """Each token has the share of quantiles that it should have, in one stretch, or in two where XTC is on: no count is
    off by more than one for each."""
    sampler, n = Sampler(p, len(logits)), 500
    drawn = np.array([drawn_at(sampler, logits, (i + 0.5) / n) for i in range(n)])
    counts = np.bincount(drawn, minlength=len(logits))
    off = np.abs(counts - n * expected)
    # A token at the very edge of what is kept may be in by one sum and out by another.
    assert off.max() <= 1 + (p.xtc_probability > 0) + 0.02 * n * expected.max()
    assert counts[expected == 0].sum() <= 1


NARROWING: list[dict[str, Any]] = [
    {"top_k": 1},
    {"top_k": 40},
    {"top_k": 700},
    {"top_p": 0.0},
    {"top_p": 0.5},
    {"top_p": 0.95},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"typical_p": 0.2},
    {"typical_p": 0.9},
    {"top_n_sigma": 0.5},
    {"top_n_sigma": 1.9},
    {"top_a": 0.3},
    {"epsilon_cutoff": 0.001},
    {"eta_cutoff": 0.01},
    {"smoothing_factor": 0.3},
    {"smoothing_factor": 0.2, "smoothing_curve": 2.5},
    {"temperature": 0.4},
    {"temperature": 1.3, "dynatemp_range": 0.8},
    {"xtc_probability": 1.0},
    {"xtc_probability": 0.5, "xtc_threshold": 0.02},
    {"top_k": 200, "tfs_z": 0.7},
    {"tfs_z": 0.95},
    {"temperature": 1.5, "top_p": 0.9, "samplers": ("temperature", "top_p")},
    {"typical_p": 0.8, "top_p": 0.8, "min_p": 0.1},
]


@crossed
@pytest.mark.parametrize("settings", NARROWING, ids=lambda s: "-".join(f"{k}={v}" for k, v in s.items()))
def test_distribution(settings: dict[str, Any], kind: str, n: int) -> None:
    logits = some_logits(kind, n)
    if kind in ("ties", "constant", "flat") and {"typical_p", "tfs_z", "epsilon_cutoff"} & set(settings):
        pytest.skip("which of equals are kept depends on the last bit of a sum")
    p = replace(OFF, **settings)
    assert_quantiles(p, logits, distribution(p, logits))


@pytest.mark.parametrize("n", [5, 20000])
def test_ties_are_kept_by_id(n: int) -> None:
    logits = np.zeros(n, np.float32)
    for settings, kept in (({"top_k": 3}, 3), ({"top_p": 0.6}, math.ceil(0.6 * n)), ({"typical_p": 0.5}, n // 2 + 1)):
        sampler = Sampler(replace(OFF, **settings), n)
        drawn = [drawn_at(sampler, logits, u) for u in (0.0, 0.5, np.nextafter(1.0, 0.0))]
        assert drawn[0] == 0
        assert abs(drawn[2] - (kept - 1)) <= (n > 1000)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("kind", ["usual", "lower", "peaked"])
def test_mirostat(version: int, kind: str) -> None:
    logits = some_logits(kind, 5000)
    p = replace(OFF, mirostat=version, mirostat_tau=3.0, mirostat_eta=0.2, top_k=1, top_p=0.1)
    sampler, mu = Sampler(p, len(logits)), 6.0
    random = np.random.default_rng(1)
    for _ in range(40):
        kept = mirostat(p, logits.astype(np.float64), mu)
        u = random.random()
        # Version 1 looks at tokens in order, version 2 in that of their ids.
        order = np.lexsort((np.arange(len(kept)), -kept)) if version == 1 else np.arange(len(kept))
        chances = probabilities(kept)
        expected = order[int(np.cumsum(chances[order]).searchsorted(u, "right"))]
        assert drawn_at(sampler, logits, u) == expected
        mu -= 0.2 * (-math.log2(chances[expected]) - 3.0)


def test_mirostat_comes_to_the_surprise_that_is_asked_for() -> None:
    logits = some_logits("usual", 3000)
    for version in (1, 2):
        sampler = Sampler(replace(OFF, mirostat=version, mirostat_tau=4.0), len(logits))
        surprise = []
        for _ in range(800):
            mu = sampler._floats[17]
            token = sampler(logits, NOTHING)
            surprise.append(-(sampler._floats[17] - mu) / 0.1 + 4.0)
            assert 0 <= token < 3000
        assert np.mean(surprise[100:]) == pytest.approx(4.0, abs=0.1)


def test_adaptive_p() -> None:
    logits = some_logits("lower", 300)
    p = replace(OFF, adaptive_target=0.3, adaptive_decay=0.8, min_p=0.02)
    sampler = Sampler(p, len(logits))
    kept = np.where(logits >= np.float32(logits.max() + math.log(0.02)), logits.astype(np.float64), -np.inf)
    weighted, weight = 0.3 / (1 - 0.8), 1 / (1 - 0.8)
    for u in np.random.default_rng(2).random(60):
        target = min(max(2 * 0.3 - weighted / weight, 0.0), 1.0)
        expected = int(np.cumsum(probabilities(adaptive_p(kept, target))).searchsorted(u, "right"))
        assert drawn_at(sampler, logits, float(u)) == expected
        weighted, weight = probabilities(kept)[expected] + 0.8 * weighted, 1 + 0.8 * weight


def test_penalties_are_llama_cpps() -> None:
    logits = np.array([2.0, -2.0, 4.0, 1.0, 0.0], np.float32)
    seen = np.array([0, 1, 1, 4], np.int32)
    p = replace(OFF, repeat_penalty=2.0, presence_penalty=0.25, frequency_penalty=0.5)
    changed = np.array([1 - 0.75, -4 - 1.25, 4, 1, -0.75])
    for n in (0, 20000):  # among few, and among many that are impossible
        many = np.concatenate((logits, np.full(n, -np.inf, np.float32)))
        before = many.copy()
        sampler = Sampler(p, len(many))
        edges = np.cumsum(probabilities(changed))
        for token, (low, high) in enumerate(zip([0, *edges[:-1]], edges, strict=True)):
            assert drawn_at(sampler, many, (low + high) / 2, seen) == token
            assert drawn_at(sampler, many, high - 1e-5, seen) == token
        np.testing.assert_array_equal(many, before)


@pytest.mark.parametrize("settings", [{"repeat_penalty": 1.3}, {"dry_multiplier": 0.8, "dry_sequence_breakers": ()}])
def test_logits_that_cannot_be_written_to(settings: dict[str, Any]) -> None:
    logits = some_logits("usual", 4000)
    seen = np.array([*range(100), *range(50)], np.int32)
    sampler = Sampler(replace(OFF, **settings), 4000)
    expected = [drawn_at(sampler, logits, u, seen) for u in (0.1, 0.6, 0.9)]
    logits.flags.writeable = False
    assert [drawn_at(sampler, logits, u, seen) for u in (0.1, 0.6, 0.9)] == expected


def test_neutral_values_leave_every_step_out() -> None:
    assert Sampler(OFF, 10).steps == []
    assert [step.name() for step in Sampler(SamplingParams(), 10).steps] == ["top_k", "top_p", "min_p", "temperature"]


def test_each_step_says_what_it_is() -> None:
    names = [f.name for f in fields(SamplingParams)]
    for step in steps.all_steps():
        assert step.__doc__
        assert "http" in step.source or "et al." in step.source
        assert step.settings
        for setting in step.settings:
            assert setting.name in names
            assert setting.doc.endswith(".")
            assert setting.low <= (setting.default or 0) <= setting.high if setting.parameter else True


@pytest.mark.parametrize(
    "name", [s.name for step in steps.all_steps() for s in step.settings if s.parameter and s.low > -math.inf]
)
def test_bounds(name: str) -> None:
    setting = next(s for step in steps.all_steps() for s in step.settings if s.name == name)
    below = math.floor(setting.low) - 2
    with pytest.raises(RequestError, match=f"{name} must be"):
        Sampler(replace(OFF, **{name: below}), 10)
    if setting.high < math.inf:
        with pytest.raises(RequestError, match=f"{name} must be"):
            Sampler(replace(OFF, **{name: math.floor(setting.high) + 2}), 10)


def test_logprobs_of_no_distribution_are_nan() -> None:
    for n in (4, 9000):
        for broken in (np.nan, np.inf, -np.inf):
            chosen, _ = logprobs(np.full(n, broken, np.float32), 1, 2)
            assert np.isnan(chosen)


@crossed
def test_logprobs(kind: str, n: int) -> None:
    logits = some_logits(kind, n)
    with np.errstate(divide="ignore"):
        expected = np.log(probabilities(logits.astype(np.float64)))
    best = np.lexsort((np.arange(n), -logits))[:5]
    token = n // 2
    chosen, top = logprobs(logits, token, 5)
    assert chosen == pytest.approx(expected[token], abs=2e-5)
    assert [i for i, _ in top] == best.tolist()
    assert [p for _, p in top] == pytest.approx(expected[best], abs=2e-5)
    assert logprobs(logits, token, 0)[1] == []
