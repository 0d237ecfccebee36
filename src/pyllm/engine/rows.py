"""The results of a step that its consumers need: logits, hidden states, or candidates."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pyllm.backends.base import Want
from pyllm.engine.sequence import Sequence
from pyllm.records import dataclass
from pyllm.sampling import TopLogits

Rows = NDArray[np.float32] | TopLogits
"""Logits [n_rows, n_vocab], final hidden states [n_rows, n_embd], or the most likely tokens of each row."""


@dataclass(frozen=True, slots=True)
class SequenceRows:
    """One sequence's rows of a step: views that the next step overwrites."""

    rows: Rows
    start: int
    n: int

    def row(self, i: int) -> NDArray[np.float32] | TopLogits:
        """Logits after the i-th token, as the sampler takes them."""
        r = self.start + i
        return self.rows.row(r) if isinstance(self.rows, TopLogits) else self.rows[r]

    def rest(self) -> SequenceRows:
        """All but the first."""
        return SequenceRows(self.rows, self.start + 1, self.n - 1)

    def block(self) -> NDArray[np.float32]:
        """All of them, [n, n_vocab] or [n, n_embd]."""
        assert not isinstance(self.rows, TopLogits), "blocks are of all logits"
        return self.rows[self.start : self.start + self.n]


def wanted(steps: list[Sequence], n_candidates: int) -> list[Want]:
    """The results that a step's consumers need: candidates, where they choose the same tokens as all logits."""
    wants: list[Want] = []
    readers = [seq for seq in steps if seq.n_rows]
    if any(seq.consumer.hidden for seq in readers):
        wants.append("hidden")
    of_logits = [seq for seq in readers if not seq.consumer.hidden]
    if of_logits or not wants:
        few = n_candidates > 0 and all(seq.consumer.content_with(seq, n_candidates) for seq in of_logits)
        wants.append("candidates" if few else "logits")
    return wants


def split(steps: list[Sequence], results: list[Rows]) -> list[SequenceRows]:
    """Each sequence's rows of the results that `wanted` names."""
    of_hidden, of_logits = results[0], results[-1]
    out = []
    r = 0
    for seq in steps:
        out.append(SequenceRows(of_hidden if seq.consumer.hidden else of_logits, r, seq.n_rows))
        r += seq.n_rows
    return out
