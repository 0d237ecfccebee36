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
