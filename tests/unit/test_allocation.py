"""The allocation of formats against trying all of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllm.errors import FormatError
from pyllm.quant.allocation import Candidate, allocate

candidates = st.builds(Candidate, st.just("x"), st.integers(1, 60), st.floats(0, 100))
problems = st.lists(st.lists(candidates, min_size=1, max_size=4), min_size=1, max_size=6)


def total(groups: list[list[Candidate]], chosen: tuple[int, ...] | list[int]) -> tuple[int, float]:
    picked = [g[k] for g, k in zip(groups, chosen, strict=True)]
    return sum(c.n_bytes for c in picked), sum(c.cost for c in picked)


@settings(max_examples=300, deadline=None)
@given(problems, st.integers(1, 300))
def test_no_choice_within_the_budget_costs_less(groups: list[list[Candidate]], budget: int) -> None:
    everything = [total(groups, chosen) for chosen in itertools.product(*(range(len(g)) for g in groups))]
    fitting = [cost for n_bytes, cost in everything if n_bytes <= budget]
    if not fitting:
        with pytest.raises(FormatError, match="smallest formats"):
            allocate(groups, budget)
        return
    n_bytes, cost = total(groups, allocate(groups, budget))
    assert n_bytes <= budget
    assert cost == pytest.approx(min(fitting), abs=1e-9)


def model(n: int, seed: int) -> list[list[Candidate]]:
    """Groups like a model's: sizes that repeat, errors that fall by four with each bit, one group that is large."""
    rng = np.random.default_rng(seed)
    bits = (2.0625, 2.3125, 2.5625, 3.0625, 3.4375, 4.25, 4.5, 5.0, 5.5, 6.5625, 8.5, 16.0)
    out = []
    for i in range(n):
        n_weights = 30_000_000 if i == 0 else int(rng.choice([150_000, 600_000, 1_200_000]))
        scale = np.exp(rng.normal(0, 2))
        out.append(
            [
                Candidate(
                    f"{b}", int(n_weights * b / 8), float(scale * 4.0**-b * rng.uniform(0.8, 1.25)) if b < 16 else 0.0
                )
                for b in bits
            ]
        )
    return out


@pytest.mark.parametrize("bits", [2.1, 3.0, 4.25, 6.0, 10.0])
def test_a_model_fills_its_budget_and_no_swap_helps(bits: float) -> None:
    groups = model(211, seed=int(100 * bits))
    budget = int(bits / 16 * sum(g[-1].n_bytes for g in groups))
    chosen = allocate(groups, budget)
    n_bytes, _ = total(groups, chosen)
    assert 0.999 * budget <= n_bytes <= budget
    for i, j in itertools.combinations(range(0, 211, 6), 2):
        for a, b in itertools.product(range(12), range(12)):
            swapped = list(chosen)
            swapped[i], swapped[j] = a, b
            swapped_bytes, swapped_cost = total([groups[i], groups[j]], [a, b])
            now_bytes, now_cost = total([groups[i], groups[j]], [chosen[i], chosen[j]])
            assert n_bytes - now_bytes + swapped_bytes > budget or swapped_cost >= now_cost * (1 - 1e-9)


def test_more_bytes_than_there_is_use_for() -> None:
    groups = [[Candidate("Q4_0", 10, 2.0), Candidate("F16", 40, 0.0), Candidate("F32", 80, 0.0)]] * 3
    assert allocate(groups, 10**12) == [1, 1, 1]
    assert allocate(groups, 30) == [0, 0, 0]


def test_costs_must_be_numbers() -> None:
    with pytest.raises(FormatError, match="finite"):
        allocate([[Candidate("Q4_0", 10, float("nan"))]], 100)
    with pytest.raises(FormatError, match="candidates"):
        allocate([[]], 100)
    assert allocate([], 0) == []
