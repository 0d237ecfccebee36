"""Which tokens the steps keep of rows without a peak, against formulas in float64: the very set, but for what is at the
edge by less than float32 can tell."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sampling_oracle import OFF, adaptive_p, by_logit, distribution, entropy, first_of, probabilities

from pyllm.config import SamplingParams
from pyllm.sampling import Sampler, chain
from pyllm.sampling.compiled import slots

NOTHING = np.empty(0, np.int32)
Row = NDArray[np.float32]


def row_of(kind: str, n: int) -> Row:
    random = np.random.default_rng(n + len(kind))
    normal = random.normal(size=n)
    x = {
        "flat": normal,
        "nearly even": normal * 1e-3,
        "even to a few bits": 7 + np.round(normal) * 2.0**-21,
        "constant": np.full(n, -3.25),
        "zeros of both signs": np.where(normal > 0, 0.0, -0.0),
        "two values": np.where(normal > 1, 1.0, 0.0),
        "one above": np.where(np.arange(n) == n // 3, 2.0, 0.0),
        "steps": np.round(normal * 4) / 4,
        "uniform": random.random(n) * 9 - 4,
        "few possible": np.where((random.random(n) < 0.01) | (np.arange(n) == 20), normal, -np.inf),
        "half possible": np.where(random.random(n) < 0.5, normal, -np.inf),
        "in order": np.sort(normal),
        "in reverse": np.sort(normal)[::-1],
        "far apart": normal * 1e4,
        "far off": normal + 1e3,
        "peak and plain": np.where(np.arange(n) < 5, 9.0 + np.arange(n), normal),
        "one possible": np.where(np.arange(n) == n // 2, 0.0, -np.inf),
    }[kind]
    return x.astype(np.float32)


KINDS = (
    "flat", "nearly even", "even to a few bits", "constant", "zeros of both signs", "two values", "one above", "steps",
    "uniform", "few possible", "half possible", "in order", "in reverse", "far apart", "far off", "peak and plain",
    "one possible",
)  # fmt: skip
rows = pytest.mark.parametrize("row", [pytest.param(row_of(k, n), id=f"{k}-{n}") for k in KINDS for n in (37, 50021)])


def kept_by(p: SamplingParams, row: Row, u: float = 0.5) -> tuple[NDArray[np.intp], int]:
    """The tokens that the chain leaves, in the order in which it holds them, and the one it draws at quantile u."""
    sampler = Sampler(p, len(row))
    sampler._number = u
    token = sampler(row, NOTHING)
    state = chain._workspace()._state
    x, ids, n = (int(state[slot // 8]) for slot in (slots.X, slots.IDS, slots.N))
    logits = np.frombuffer((ctypes.c_float * n).from_address(x), np.float32)
    tokens = np.frombuffer((ctypes.c_int32 * n).from_address(ids), np.int32) if ids else np.arange(n)
    return tokens[logits > -np.inf].astype(np.intp), token


def assert_first_in(order_by: NDArray[np.float64], kept: NDArray[np.intp], tolerance: float) -> None:
    """Those kept come before all others in that order, and, of equal ones, by id."""
    inside = np.zeros(len(order_by), bool)
    inside[kept] = True
    farthest, nearest = order_by[inside].max(), order_by[~inside].min(initial=np.inf)
    assert farthest <= nearest + tolerance
    at_edge = order_by == farthest
    if tolerance == 0 and nearest == farthest:
        assert np.flatnonzero(inside & at_edge).max() < np.flatnonzero(~inside & at_edge).min()


@rows
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.5, 0.95, 0.9999])
def test_top_p(row: Row, share: float) -> None:
    kept, _ = kept_by(replace(OFF, top_p=share), row)
    x = row.astype(np.float64)
    assert_first_in(-x, kept, 0)
    p = probabilities(x)
    reached = p[kept].sum()
    assert reached >= share - 1e-6
    # Without the least of them, it is not reached.
    assert len(kept) == 1 or reached - p[kept].min() < share + 1e-6


@rows
@pytest.mark.parametrize("k", [1, 40, 255, 257, 1000, 2049, 30000, 50020])
def test_top_k(row: Row, k: int) -> None:
    kept, _ = kept_by(replace(OFF, top_k=k), row)
    possible = int((row > -np.inf).sum())
    expected = by_logit(row.astype(np.float64))[: min(k, possible)]
    np.testing.assert_array_equal(np.sort(kept), np.sort(expected))
    if k <= 2048:
        np.testing.assert_array_equal(kept, expected)


@pytest.mark.parametrize("k", [200, 300, 3000])
def test_top_k_takes_infinite_logits_as_the_largest_number(k: int) -> None:
    row = row_of("flat", 50021)
    row[100:45000:100], row[7:9000:10] = np.inf, np.nan
    kept, _ = kept_by(replace(OFF, top_k=k), row)
    x = np.where(np.isnan(row), -np.inf, np.minimum(row, np.finfo(np.float32).max)).astype(np.float64)
    np.testing.assert_array_equal(np.sort(kept), np.sort(by_logit(x)[:k]))


@rows
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_typical_p(row: Row, share: float) -> None:
    kept, _ = kept_by(replace(OFF, typical_p=share), row)
    x = row.astype(np.float64)
    p = probabilities(x)
    with np.errstate(divide="ignore"):
        distance = np.abs(-np.log(p) - entropy(x))
    # The entropy has an error of float32 sums, and distances one of the logits' size.
    assert_first_in(distance, kept, 2e-5 + 2e-7 * float(np.abs(x[x > -np.inf]).max()))
    assert p[kept].sum() >= share - 1e-5
    assert len(kept) == 1 or p[kept].sum() - p[kept][distance[kept].argmax()] <= share + 1e-5
    expected = np.flatnonzero(first_of(x, np.argsort(distance, kind="stable"), share, strictly=True) > -np.inf)
    assert abs(len(kept) - len(expected)) <= 1 + 2e-5 * len(row)


def log_probabilities(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(x - x.max() - math.log(np.exp(x - x.max()).sum()))


def largest(x: NDArray[np.float64]) -> float:
    return float(log_probabilities(x).max())


LEAST: dict[str, tuple[dict[str, Any], Callable[[NDArray[np.float64]], float]]] = {
    "min_p": ({"min_p": 0.2}, lambda x: math.log(0.2) + largest(x)),
    "min_p 1": ({"min_p": 1.0}, largest),
    "top_a": ({"top_a": 0.7}, lambda x: math.log(0.7) + 2 * largest(x)),
    "epsilon_cutoff": ({"epsilon_cutoff": 2e-5}, lambda x: math.log(2e-5)),
    "epsilon_cutoff of few": ({"epsilon_cutoff": 0.9}, lambda x: math.log(0.9)),
    "eta_cutoff": ({"eta_cutoff": 1e-4}, lambda x: min(math.log(1e-4), 0.5 * math.log(1e-4) - entropy(x))),
    "mirostat 2": ({"mirostat": 2, "mirostat_tau": 7.5}, lambda x: -15 * math.log(2)),
    "top_n_sigma": ({"top_n_sigma": 1.0}, lambda x: largest(x) - float(x[x > -np.inf].std())),
}
"""Settings, and the logarithm of the probability from which on they keep a token."""


@rows
@pytest.mark.parametrize("name", LEAST)
def test_what_is_likely_enough(row: Row, name: str) -> None:
    settings, least = LEAST[name]
    kept, _ = kept_by(replace(OFF, **settings), row)
    x = row.astype(np.float64)
    above = log_probabilities(x) - least(x)
    edge = 1e-5 + 2e-7 * float(np.abs(x[x > -np.inf]).max())
    surely = np.flatnonzero((above > edge) | (x == x.max()))
    np.testing.assert_array_equal(kept, np.sort(kept))
    assert np.isin(surely, kept).all()
    assert np.isin(kept, np.flatnonzero((above > -edge) | (x == x.max()))).all()


@rows
@pytest.mark.parametrize("threshold", [0.0, 1e-5, 0.02, 0.3])
def test_xtc(row: Row, threshold: float) -> None:
    kept, _ = kept_by(replace(OFF, xtc_probability=1.0, xtc_threshold=threshold), row)
    x = row.astype(np.float64)
    above = log_probabilities(x) - (math.log(threshold) if threshold else -1e300)
    if (np.abs(above) < 1e-6).any():
        pytest.skip("whether a token is at the threshold depends on the last bit of a sum")
    expected = x > -np.inf
    if (above >= 0).sum() > 1:
        least = x[above >= 0].min()
        expected &= above < 0
        expected[np.flatnonzero(x == least)[-1]] = True
    np.testing.assert_array_equal(np.sort(kept), np.flatnonzero(expected))


@rows
@pytest.mark.parametrize(
    "settings",
    [
        {"top_p": 0.9},
        {"typical_p": 0.9, "top_p": 0.7},
        {"top_k": 3000},
        {"top_k": 45000, "top_p": 0.8},
        {"xtc_probability": 0.5, "xtc_threshold": 1e-6},
        {"temperature": 1.5, "top_p": 0.9, "samplers": ("temperature", "top_p")},
    ],
    ids=str,
)
def test_a_seed_gives_the_same_tokens_whatever_else_is_in_the_step(row: Row, settings: dict[str, Any]) -> None:
    p = replace(OFF, seed=11, **settings)
    alone, beside = Sampler(p, len(row)), Sampler(p, len(row))
    other, others_row = Sampler(replace(OFF, typical_p=0.4), len(row)), row[::-1].copy()
    for _ in range(3):
        token = alone(row, NOTHING)
        chosen = chain.choose([others_row, row, others_row], [other, beside, other], [NOTHING] * 3)
        assert chosen[1] == token
        beside.accept(token)


@pytest.mark.parametrize("kind", ["flat", "steps", "constant", "half possible", "two values"])
@pytest.mark.parametrize(
    "settings",
    [
        {"top_p": 0.8},
        {"typical_p": 0.7},
        {"top_k": 4000},
        {"min_p": 0.1},
        {"xtc_probability": 0.6, "xtc_threshold": 1e-4},
        {"temperature": 1.5, "typical_p": 0.9, "top_p": 0.9, "samplers": ("temperature", "typical_p", "top_p")},
    ],
    ids=str,
)
def test_tokens_are_drawn_with_their_probabilities(kind: str, settings: dict[str, Any]) -> None:
    """Chi-square over forty stretches of ids of equal probability."""
    row, n = row_of(kind, 6007), 2000
    p = replace(OFF, seed=3, **settings)
    expected = distribution(p, row)
    ends = np.searchsorted(np.cumsum(expected), np.arange(1, 40) / 40)
    stretch = np.searchsorted(ends, np.arange(len(row)), "left")
    share = np.bincount(stretch, expected, minlength=40)
    sampler = Sampler(p, len(row))
    drawn = np.array([sampler(row, NOTHING) for _ in range(n)])
    assert (expected[drawn] == 0).sum() <= 1  # at the edge by the last bit of a sum
    counts = np.bincount(stretch[drawn], minlength=40)
    statistic = float(((counts - n * share)[share > 0] ** 2 / (n * share[share > 0])).sum())
    k = int((share > 0).sum()) - 1
    assert statistic <= k * (1 - 2 / (9 * k) + 5 * math.sqrt(2 / (9 * k))) ** 3  # five sigma, Wilson and Hilferty


@pytest.mark.parametrize("kind", ["flat", "steps", "constant", "half possible", "in order"])
@pytest.mark.parametrize(
    "settings", [{"top_k": 3000}, {"top_k": 5000, "temperature": 0.8}, {"mirostat": 1, "mirostat_tau": 9.0}]
)
def test_many_of_the_largest_are_drawn_in_their_order(kind: str, settings: dict[str, Any]) -> None:
    row = row_of(kind, 6007)
    p = replace(OFF, **settings)
    x = row.astype(np.float64) / p.temperature
    for u in (0.0, 0.001, 0.37, 0.8, 0.9999, math.nextafter(1, 0)):
        kept, token = kept_by(p, row, u)
        order = kept[np.lexsort((kept, -x[kept]))]
        chances = np.exp(x[order] - x[order].max())
        at = int(np.searchsorted(np.cumsum(chances) / chances.sum(), u, "right"))
        place = int(np.flatnonzero(order == token)[0])
        assert abs(place - min(at, len(order) - 1)) <= 1 or u > 0.99999


def test_a_steep_curve_of_smoothing_changes_the_order() -> None:
    row = np.array([0, -0.5, -1, -1.5, -3], np.float32)
    names = ("top_k", "smoothing", "top_p")
    p = replace(OFF, top_k=4, smoothing_factor=1.0, smoothing_curve=6.0, top_p=0.3, samplers=names)
    assert distribution(p, row).tolist() == [0, 1, 0, 0, 0]
    assert kept_by(p, row)[0].tolist() == [1]


@pytest.mark.parametrize("kind", ["flat", "steps"])
def test_adaptive_p_after_many_of_the_largest(kind: str) -> None:
    row = row_of(kind, 6007)
    p = replace(OFF, top_k=3000, adaptive_target=0.1)
    kept = np.sort(by_logit(row.astype(np.float64))[:3000])
    x = np.full(len(row), -np.inf)
    x[kept] = row[kept]
    expected = probabilities(adaptive_p(x, 0.1))
    for u in (0.001, 0.5, 0.9):
        at = int(np.searchsorted(np.cumsum(expected), u, "right"))
        assert abs(np.searchsorted(kept, kept_by(p, row, u)[1]) - np.searchsorted(kept, at)) <= 1


@rows
@pytest.mark.parametrize("share", [0.3, 0.95])
def test_tfs_z(row: Row, share: float) -> None:
    """As many as the bends of the sorted probabilities say."""
    kept, _ = kept_by(replace(OFF, tfs_z=share), row)
    x = row.astype(np.float64)
    possible = int((x > -np.inf).sum())
    order = by_logit(x)[:possible]
    likely = order[x[order] >= np.float32(x.max() - 11.52)]
    np.testing.assert_array_equal(kept, order[: len(kept)])
    p = np.exp(x[order] - x.max())
    p[len(likely) :] = 0
    bends = np.abs(np.diff(np.diff(p)))
    if not bends.sum():
        assert len(kept) == len(likely)
        return
    reached = np.cumsum(bends) / bends.sum()
    at_least, at_most = (1 + int((reached <= share + e).sum()) for e in (-1e-5, 1e-5))
    assert min(at_least, len(likely)) <= len(kept) <= min(at_most, len(likely))
