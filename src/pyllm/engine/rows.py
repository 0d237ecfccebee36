"""The result of a step that its consumers need: logits, hidden states, or candidates."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pyllm.backends.base import Candidates
from pyllm.engine.sequence import Answer, Sequence
from pyllm.sampling import Largest

Rows = NDArray[np.float32] | Candidates
"""Logits [n_rows, n_vocab], final hidden states [n_rows, n_embd], or the most likely tokens of each row."""


def wanted(steps: list[Sequence], n_candidates: int) -> Literal["logits", "hidden", "candidates"]:
    """The result that a step's consumers need: candidates, where they choose the same tokens as all logits."""
    if steps[0].hidden:
        return "hidden"
    few = n_candidates > 0 and all(
        seq.n_rows == 0 or (isinstance(seq, Answer) and seq.content_with(n_candidates)) for seq in steps
    )
    return "candidates" if few else "logits"


def row(rows: Rows, r: int) -> NDArray[np.float32] | Largest:
    """One row of a result, as the sampler takes it."""
    if isinstance(rows, Candidates):
        return Largest(rows.ids[r], rows.logits[r], float(rows.log_sum[r]))
    return rows[r]
