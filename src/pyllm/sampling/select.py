"""The largest of many logits, with numpy, without sorting or copying all of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ids = NDArray[np.intp]

_ROWS = 64
"""Rows of the matrix that logits are viewed as; the maximum of each column takes one pass at memory speed."""
_FEW = 4096
"""Number of logits up to which sorting is as fast."""
_BINS = 8192


class Peaks:
    """Column maxima of logits [n] viewed as a matrix; they tell which columns may hold a logit of a given size."""

    def __init__(self, logits: Floats) -> None:
        self.logits = logits
        self.n_columns = len(logits) // _ROWS if len(logits) > _FEW else 0
        self.body = logits[: _ROWS * self.n_columns].reshape(_ROWS, self.n_columns)
        self.maxima = self.body.max(axis=0) if self.n_columns else logits
        self.top: float = float(self.maxima.max(initial=-np.inf))
        if self.n_columns:
            tail = logits[_ROWS * self.n_columns :]
            # Not `max`, which would lose a NaN.
            self.top = float(np.maximum(self.top, tail.max(initial=-np.inf)))

    def at_least(self, threshold: float) -> Ids:
        """Ids of the logits of at least `threshold`, in any order."""
        if not self.n_columns:
            return np.flatnonzero(self.logits >= threshold)
        columns = np.flatnonzero(self.maxima >= threshold)
        if 4 * len(columns) > self.n_columns:
            return np.flatnonzero(self.logits >= threshold)
        start = _ROWS * self.n_columns
        tail = np.flatnonzero(self.logits[start:] >= threshold) + start
        if not len(columns):
            return tail
        found = np.flatnonzero(self.body.take(columns, axis=1) >= threshold)
        row, column = np.divmod(found, len(columns))
        return np.concatenate((row * self.n_columns + columns[column], tail))

    def largest(self, k: int) -> Ids:
        """Ids of the k largest logits (or all), largest first, equal ones by id."""
        k = min(k, len(self.logits))
        n = len(self.maxima)
        if 4 * k < n:
            # k columns each hold a logit of at least the k-th largest maximum.
            ids = self.at_least(float(np.partition(self.maxima, n - k)[n - k]))
        elif k < len(self.logits):
            ids = np.flatnonzero(self.logits >= np.partition(self.logits, len(self.logits) - k)[len(self.logits) - k])
        else:
            ids = np.arange(k)
        return ids[np.lexsort((ids, -self.logits[ids]))[:k]]


def heaviest_set(weight: Floats, mass: float) -> Ids:
    """Indices of the fewest largest weights that together reach `mass`, in any order.

    At least one; all, where the sum never reaches it. Of equal weights the first are taken.
    """
    ordered = np.sort(weight)[::-1]
    n = _reaches(ordered, mass) + 1
    least = ordered[n - 1]
    chosen = np.flatnonzero(weight >= least)
    if len(chosen) > n:
        equal = np.flatnonzero(weight[chosen] == least)
        chosen = np.delete(chosen, equal[n - len(chosen) :])
    return chosen


def lowest_set(score: Floats, weight: Floats, mass: float) -> Ids:
    """Indices of the fewest lowest scores (0 or more) whose weights together exceed `mass`.

    At least one; all, where the sum never exceeds it. Of equal scores the first are taken.
    """
    sure, edge, before = np.arange(0), np.arange(len(score)), 0.0
    if len(score) > _FEW:
        # A histogram gives the narrow range of the last score; only scores within it are sorted.
        bins = np.minimum(score * np.float32(128), np.float32(_BINS - 1)).astype(np.intp)
        sums = np.cumsum(np.bincount(bins, weight, _BINS))
        last = min(int(sums.searchsorted(mass, "right")), _BINS - 1)
        sure, edge = np.flatnonzero(bins < last), np.flatnonzero(bins == last)
        before = float(sums[last - 1]) if last else 0.0
    edge = edge[np.argsort(score[edge], kind="stable")]
    n = int(np.cumsum(weight[edge], dtype=np.float64).searchsorted(mass - before, "right")) + 1
    return np.concatenate((sure, edge[:n]))


def _reaches(weight: Floats, mass: float) -> int:
    """First index where the running sum of `weight` is `mass` or more; the last, where it never is."""
    n = len(weight) // _ROWS * _ROWS if len(weight) > _FEW else 0
    start, before = 0, 0.0
    if n:
        # First a running sum of sums: one over everything takes several times as long.
        sums = np.cumsum(weight[:n].reshape(-1, _ROWS).sum(axis=1), dtype=np.float64)
        block = int(sums.searchsorted(mass))
        start, before = block * _ROWS, float(sums[block - 1]) if block else 0.0
    reached = np.cumsum(weight[start : start + 2 * _ROWS] if n else weight, dtype=np.float64)
    return min(start + int(reached.searchsorted(mass - before)), len(weight) - 1)
