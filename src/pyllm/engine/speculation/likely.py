"""The most likely token of a row, and whether guessing goes on after it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pyllm.backends.base import Executable, Want
from pyllm.sampling.top_logits import TopLogits

_LEAST_SURE = 0.6
"""How likely a token must be at least, so that guessing goes on after it."""


def want(executable: Executable) -> Want:
    """The result to ask of an executable, for `likely`."""
    return "candidates" if executable.n_candidates else "logits"


def likely(rows: NDArray[np.float32] | TopLogits, n: int, n_vocab: int) -> list[tuple[int, bool]]:
    """Of each of n rows the most likely token, of the first `n_vocab` where there are all logits, and whether guessing
    goes on after it."""
    if isinstance(rows, TopLogits):
        return [_of_candidates(rows, r, n_vocab) for r in range(n)]
    return [_of_logits(row) for row in rows[:, :n_vocab]]


def _of_logits(row: NDArray[np.float32]) -> tuple[int, bool]:
    token = int(row.argmax())
    return token, bool(np.exp(row - row[token]).sum() * _LEAST_SURE <= 1)


def _of_candidates(top: TopLogits, r: int, n_vocab: int) -> tuple[int, bool]:
    row = top.row(r)
    best = int(np.argmax(row.logits))
    token = int(row.ids[best])
    return token, token < n_vocab and bool(np.exp(row.logits[best] - row.log_sum) >= _LEAST_SURE)
