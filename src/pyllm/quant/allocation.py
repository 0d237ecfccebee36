"""Choice of each tensor's format with the least total cost within a number of bytes.

This is the knapsack problem with one choice per group. A price per byte (a Lagrange multiplier) gives a choice that is
optimal for its own size, and a bound that no choice beats; the gap between the two is searched exactly.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pyllm.errors import FormatError
from pyllm.records import dataclass

_MOST_STATES = 200_000
"""Number of partial choices above which the search keeps only the most promising ones: not exact, still feasible."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A format that a tensor, or a group of tensors, may take."""

    format: str
    n_bytes: int
    cost: float
    """Loss of quality; costs of different tensors add up. Finite."""


@dataclass(frozen=True, slots=True)
class _Group:
    """A group's efficient candidates: each larger and cheaper than the one before."""

    indices: NDArray[np.intp]
    """Indices among all candidates of the group."""
    n_bytes: NDArray[np.int64]
    cost: NDArray[np.float64]


def allocate(groups: Sequence[Sequence[Candidate]], budget: int) -> list[int]:
    """The candidate of each group, by index, with the least total cost within `budget` bytes.

    Raises FormatError where even the smallest candidates do not fit.
    """
    if any(not group or not all(np.isfinite(c.cost) for c in group) for group in groups):
        raise FormatError("every group needs candidates with finite costs")
    pruned = [_worth_having(group) for group in groups]
    least = sum(int(g.n_bytes[0]) for g in pruned)
    if least > budget:
        raise FormatError(f"the smallest formats take {least} bytes, more than the {budget} that are allowed")
    chosen = _solve(pruned, budget)
    return [int(g.indices[k]) for g, k in zip(pruned, chosen, strict=True)]


def _worth_having(group: Sequence[Candidate]) -> _Group:
    """The candidates without those that are no cheaper than a smaller one."""
    kept: list[int] = []
    for i in sorted(range(len(group)), key=lambda i: (group[i].n_bytes, group[i].cost)):
        if not kept or group[i].cost < group[kept[-1]].cost:
            kept.append(i)
    return _Group(
        np.array(kept, np.intp),
        np.array([group[i].n_bytes for i in kept], np.int64),
        np.array([group[i].cost for i in kept], np.float64),
    )


def _solve(groups: Sequence[_Group], budget: int) -> list[int]:
    largest = [len(g.n_bytes) - 1 for g in groups]
    if _n_bytes(groups, largest) <= budget:
        return largest
    price, chosen = _priced(groups, budget)
    _spend_rest(groups, chosen, budget)
    bound = sum(float((g.cost + price * g.n_bytes).min()) for g in groups) - price * budget
    gap = _cost(groups, chosen) - bound
    return _search(groups, price, budget, gap) or chosen


def _priced(groups: Sequence[_Group], budget: int) -> tuple[float, list[int]]:
    """The lowest price at which the best choice fits the budget, and that choice."""

    def at(price: float) -> list[int]:
        return [int(np.argmin(g.cost + price * g.n_bytes)) for g in groups]

    low, high = 0.0, 1.0
    while _n_bytes(groups, at(high)) > budget:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        if _n_bytes(groups, at(middle)) > budget:
            low = middle
        else:
            high = middle
    return high, at(high)


def _spend_rest(groups: Sequence[_Group], chosen: list[int], budget: int) -> None:
    """While possible, make the single change that saves most cost within the remaining bytes."""
    left = budget - _n_bytes(groups, chosen)
    while True:
        best = (0.0, 0, 0)
        for i, (g, k) in enumerate(zip(groups, chosen, strict=True)):
            fits = np.flatnonzero(g.n_bytes - g.n_bytes[k] <= left)
            j = int(fits[-1])  # the largest is the cheapest
            best = max(best, (float(g.cost[k] - g.cost[j]), i, j))
        saved, i, j = best
        if saved <= 0:
            return
        left -= int(groups[i].n_bytes[j] - groups[i].n_bytes[chosen[i]])
        chosen[i] = j


def _search(groups: Sequence[_Group], price: float, budget: int, gap: float) -> list[int] | None:
    """The best choice that costs less than the bound plus `gap`; None where there is none.

    A choice costs the bound, its slack (its candidates' priced cost beyond the best of their groups), and the price of
    unused bytes. All parts are positive, so a choice better than the known one has only candidates of little slack:
    most groups have a single one.
    """
    slack = [g.cost + price * g.n_bytes for g in groups]
    slack = [s - s.min() for s in slack]
    open_to = [np.flatnonzero(s < gap) for s in slack]
    n_bytes = np.zeros(1, np.int64)
    sums = np.zeros(1)
    left = [g.n_bytes[o] for g, o in zip(groups, open_to, strict=True)]
    least, most = _sums_after([int(b.min(initial=0)) for b in left]), _sums_after([int(b.max(initial=0)) for b in left])
    trail: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = []
    for i, (g, s, o) in enumerate(zip(groups, slack, open_to, strict=True)):
        new_bytes = (n_bytes[:, None] + g.n_bytes[o]).ravel()
        new_sums = (sums[:, None] + s[o]).ravel()
        unused = np.maximum(0, budget - new_bytes - most[i])
        keep = np.flatnonzero((new_bytes + least[i] <= budget) & (new_sums + price * unused < gap))
        keep = keep[np.lexsort((new_sums[keep], new_bytes[keep]))]
        value = new_sums[keep] - price * new_bytes[keep]
        keep = keep[np.concatenate(([True], value[1:] < np.minimum.accumulate(value)[:-1]))] if len(keep) else keep
        if len(keep) > _MOST_STATES:
            keep = keep[np.sort(np.argpartition(new_sums[keep], _MOST_STATES)[:_MOST_STATES])]
        if not len(keep):
            return None
        n_bytes, sums = new_bytes[keep], new_sums[keep]
        trail.append((keep // len(o), o[keep % len(o)]))
    state = int(np.argmin(sums - price * n_bytes))
    chosen: list[int] = []
    for parents, members in reversed(trail):
        chosen.append(int(members[state]))
        state = int(parents[state])
    return chosen[::-1]


def _sums_after(values: Sequence[int]) -> NDArray[np.int64]:
    """For each index, the sum of the later entries."""
    return np.cumsum([0, *values[:0:-1]], dtype=np.int64)[::-1]


def _n_bytes(groups: Sequence[_Group], chosen: Sequence[int]) -> int:
    return sum(int(g.n_bytes[k]) for g, k in zip(groups, chosen, strict=True))


def _cost(groups: Sequence[_Group], chosen: Sequence[int]) -> float:
    return sum(float(g.cost[k]) for g, k in zip(groups, chosen, strict=True))
