"""What a step is asked for, and the rows that come of it."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pyllm.backends.base import Candidates
from pyllm.engine.sequence import Answer, Sequence
from pyllm.sampling import Largest

Rows = NDArray[np.float32] | Candidates
"""[n_rows, n_vocab] logits or [n_rows, n_embd] final states, or the likeliest tokens of each row."""


def wanted(steps: list[Sequence], n_candidates: int) -> Literal["logits", "hidden", "candidates"]:
    """What the consumers of a step's rows need: of logits the largest, where these choose the same tokens."""
    if steps[0].hidden:
        return "hidden"
    few = n_candidates > 0 and all(
        seq.n_rows == 0 or (isinstance(seq, Answer) and seq.content_with(n_candidates)) for seq in steps
    )
    return "candidates" if few else "logits"


def row(rows: Rows, r: int) -> NDArray[np.float32] | Largest:
    """A row of logits, as the sampler takes it."""
    if isinstance(rows, Candidates):
        return Largest(rows.ids[r], rows.logits[r], float(rows.log_sum[r]))
    return rows[r]
