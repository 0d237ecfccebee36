"""Writes a step into the batch's arrays; of page tables only the changes since the last step."""

from __future__ import annotations

import numpy as np

from pyllm.backends.base import Batch
from pyllm.config import ExecutionOptions
from pyllm.engine.sequence import Sequence


class BatchWriter:
    """A `Batch`, rewritten for each step. As `Batch.add`, for sequences known to fit."""

    def __init__(self, options: ExecutionOptions, number: int = 0) -> None:
        """`number`: of several writers, so that a sequence's row tells where its pages are listed."""
        self.batch = Batch(options)
        self._first_row = number * options.max_seqs
        self._range = np.arange(max(options.n_pages * options.page_size, options.max_tokens), dtype=np.int32)
        self._owners: list[Sequence | None] = [None] * options.max_seqs

    def write(self, steps: list[Sequence]) -> Batch:
        """Write and return the batch of a scheduled step."""
        b = self.batch
        tokens, positions, seqs, spans, rows = b.tokens, b.positions, b.seqs, b.spans, b.rows
        t = r = n_generated = b.n_saves = 0
        for s, seq in enumerate(steps):
            start, n = seq.n_computed, seq.n_step
            if n_generated == t and seq.generates and (n == 1 or seq.n_draft):
                n_generated += n
            if n == 1:
                tokens[t] = seq.tokens[start]
                positions[t] = start
                seqs[t] = s
            else:
                tokens[t : t + n] = seq.tokens[start : start + n]
                positions[t : t + n] = self._range[start : start + n]
                seqs[t : t + n] = s
            spans[s, 0] = t
            spans[s, 1] = n
            b.sources[s] = seq.n_source
            t += n
            wanted = seq.n_rows
            if wanted == 1:
                rows[r] = t - 1
            elif wanted:
                rows[r : r + wanted] = self._range[t - wanted : t]
            r += wanted
            if b.n_slots:
                self._write_states(s, seq)
            if self._owners[s] is not seq or seq.row != self._first_row + s or seq.n_listed < len(seq.pages):
                self._list_pages(s, seq)
        b.n_tokens, b.n_generated, b.n_seqs, b.n_rows = t, n_generated, len(steps), r
        return b

    def forget(self) -> None:
        """Drop all references to sequences."""
        self._owners = [None] * len(self._owners)

    def _write_states(self, s: int, seq: Sequence) -> None:
        b = self.batch
        first, n = b.n_saves, len(seq.saves)
        b.state_in[s], b.saves[s, 0], b.saves[s, 1] = seq.slot, first, n
        for i, (after, slot) in enumerate(seq.saves, first):
            b.save_after[i], b.save_slot[i] = after, slot
        b.n_saves = first + n

    def _list_pages(self, s: int, seq: Sequence) -> None:
        row = self._first_row + s
        known = seq.n_listed if self._owners[s] is seq and seq.row == row else 0
        self.batch.page_tables[s, known : len(seq.pages)] = seq.pages[known:]
        self._owners[s] = seq
        seq.row = row
        seq.n_listed = len(seq.pages)
