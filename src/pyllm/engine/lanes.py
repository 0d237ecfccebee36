"""Lanes: each takes a step at a time through an executable, with arrays and masks of its own.

Where an executable can pause steps, it has two. Prompts are then read in steps of their own, in the first one, a slice
of time after each step of the answers that are followed, which the second one takes.
"""

from __future__ import annotations

from time import perf_counter

from pyllm.backends.base import Executable, Want
from pyllm.constraints.pool import MaskPool, Masks
from pyllm.engine import rows
from pyllm.engine.answer import choose_tokens, mask_rows
from pyllm.engine.filling import BatchWriter
from pyllm.engine.rows import SequenceRows
from pyllm.engine.sequence import Sequence
from pyllm.engine.speculation import Speculation
from pyllm.sampling import TopLogits


class Lane:
    """One step: written, computed at once or in slices, and the next tokens chosen from its rows."""

    def __init__(
        self, executable: Executable, n_vocab: int, number: int = 0, speculation: Speculation | None = None
    ) -> None:
        """`speculation`: drafters that may follow the steps."""
        self._executable = executable
        self._followers = speculation if speculation is not None and speculation.reads_features else None
        self._writer = BatchWriter(executable.options, number)
        self._pool = MaskPool(n_vocab)
        self._masks: Masks | None = None

    def run(self, steps: list[Sequence]) -> list[SequenceRows]:
        """Each sequence's rows of a step. Raises as `Executable.run_stage` does."""
        wants = self._write(steps)
        return self._split(steps, self._executable.run_all(self._writer.batch, wants))

    def begin(self, steps: list[Sequence], seconds: float) -> list[SequenceRows]:
        """Compute a step for about so long: the rows, none where it is paused then."""
        wants = self._write(steps)
        results = self._executable.begin(self._writer.batch, wants, seconds)
        return [] if results is None else self._split(steps, results)

    def proceed(self, steps: list[Sequence], seconds: float) -> list[SequenceRows]:
        """Go on with the step that `begin` began."""
        results = self._executable.proceed(seconds)
        return [] if results is None else self._split(steps, results)

    def choose(self, rows: list[tuple[Sequence, SequenceRows]], again: bool = False) -> None:
        """Choose the next tokens of the step's answers; `again`: of those whose drafts were right so far."""
        if not again:
            self._masks = self._pool.get()
        choose_tokens(rows, self._masks)

    @property
    def size(self) -> tuple[int, int]:
        """The last step's generated tokens, and others."""
        batch = self._writer.batch
        return batch.n_generated, batch.n_tokens - batch.n_generated

    def forget(self) -> None:
        """Drop all references to sequences."""
        self._writer.forget()

    def close(self) -> None:
        self._pool.close()

    def _write(self, steps: list[Sequence]) -> list[Want]:
        now = perf_counter()
        for seq in steps:
            if seq.started_at is None:
                seq.started_at = now
        self._writer.write(steps)
        self._pool.begin(*mask_rows(steps))
        wants = rows.wanted(steps, self._executable.n_candidates)
        if self._followers is not None:
            batch = self._writer.batch
            wants.append("row_features" if batch.n_rows == batch.n_tokens else "features")
        return wants

    def _split(self, steps: list[Sequence], results: list[rows.Rows]) -> list[SequenceRows]:
        """Each sequence's rows, after drafters have followed the step."""
        if self._followers is not None:
            features = results.pop()
            assert not isinstance(features, TopLogits)
            self._followers.follow(steps, self._writer.batch, features)
        return rows.split(steps, results)
