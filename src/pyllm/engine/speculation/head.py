"""Guesses by a head of the model itself, which reads its final states (multi-token prediction)."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Many
from copy import copy
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from pyllm.backends.base import Batch, Executable
from pyllm.engine.sequence import Sequence
from pyllm.engine.speculation.drafter import Drafter, Offer
from pyllm.engine.speculation.lengths import StepTimes
from pyllm.engine.speculation.likely import likely, want
from pyllm.records import dataclass
from pyllm.sampling.top_logits import TopLogits

F32 = NDArray[np.float32]

MOST = 8
"""Tokens of a draft at most."""


@dataclass(slots=True)
class _Seen:
    """A sequence's last features: those of the tokens from position `first` on."""

    seq: Sequence
    first: int
    rows: F32


class Head(Drafter):
    """Its most likely tokens, one after another, of all sequences together; as long as it is sure of them.

    The head has keys and values of its own, in pages of the model's numbers: what it keeps of a position depends on the
    tokens up to there, as the model's does. So it reads each step's tokens along, and shares prefixes without a ledger
    of its own. With a token it reads the model's feature of the token before, zeros before the first one.
    """

    priors = (0.75,)
    is_free = False
    reads_features = True

    def __init__(
        self, executable: Executable, n_vocab: int, close: Callable[[], None], ids: NDArray[np.int64] | None = None
    ) -> None:
        """`executable`: of the head's program (`archs.heads`), with the model's capacities, but for slots, and a row of
        each sequence. `close` frees it. `ids`: the model's id of each of the head's tokens; None: they are the same."""
        options = executable.options
        self.executable = executable
        self._n_vocab = n_vocab
        self._close = close
        self._ids = ids
        self._batch = Batch(options)
        (received,) = executable.program.stages[0].receives
        self._given = np.zeros((options.max_tokens, received.width), np.float32)
        self._ends = np.zeros((options.n_pages, received.width), np.float32)
        """The feature of each page's last position, for sequences that go on there."""
        self._seen: dict[int, _Seen] = {}
        self._times = StepTimes(options.max_seqs)

    def follow(self, steps: Many[Sequence], batch: Batch, features: F32) -> None:
        n = batch.n_tokens
        given = self._given[:n]
        given[1:] = features[: n - 1]
        for s, seq in enumerate(steps):
            given[batch.spans[s, 0]] = self._before(seq, seq.n_computed)
        alone = copy(batch)
        alone.n_slots = alone.n_rows = 0  # only keys and values are wanted
        alone.rows = self._batch.rows
        self.executable.run_all(alone, (), [given])
        ends = np.flatnonzero((batch.positions[:n] + 1) % batch.page_size == 0)
        self._ends[batch.page_tables[batch.seqs[ends], batch.positions[ends] // batch.page_size]] = features[ends]
        self._seen = {number: seen for number, seen in self._seen.items() if seen.seq.running}
        for s, seq in enumerate(steps):
            stop = int(batch.spans[s].sum())
            kept = features[stop - seq.n_draft - 1 : stop].copy()
            self._seen[seq.number] = _Seen(seq, seq.n_computed + seq.n_step - len(kept), kept)

    def offer(self, seq: Sequence) -> Offer:
        return Offer(0, MOST)

    def seconds(self, n_seqs: int) -> float:
        return self._times.seconds(n_seqs)

    def draft(self, wanted: Many[tuple[Sequence, int]]) -> list[list[int]]:
        drafts: list[list[int]] = [[] for _ in wanted]
        last = [(int(seq.tokens[seq.n_tokens - 1]), self._before(seq, seq.n_tokens - 1)) for seq, _ in wanted]
        left = list(range(len(wanted)))
        while left:
            began, batch = perf_counter(), self._batch
            batch.clear()
            for row, i in enumerate(left):
                seq = wanted[i][0]
                token, self._given[row] = last[i]
                batch.add([token], seq.n_tokens - 1 + len(drafts[i]), seq.pages, "last", generated=True)
            given = [self._given[: len(left)]]
            rows, hidden = self.executable.run_all(batch, (want(self.executable), "hidden"), given)
            assert not isinstance(hidden, TopLogits)
            self._times.note(len(left), perf_counter() - began)
            going: list[int] = []
            for row, (i, (token, sure)) in enumerate(zip(left, likely(rows, len(left), self._n_vocab), strict=True)):
                # The first one in any case, so that it is known whether it is right.
                token = token if self._ids is None else int(self._ids[token])
                if sure or not drafts[i]:
                    drafts[i].append(token)
                    last[i] = token, hidden[row].copy()
                if sure and len(drafts[i]) < wanted[i][1]:
                    going.append(i)
            left = going
        return drafts

    def memory(self) -> dict[str, int]:
        held = self.executable.memory()
        return {**held, "work": held["work"] + self._given.nbytes + self._ends.nbytes}

    def close(self) -> None:
        self._seen.clear()
        self._close()

    def _before(self, seq: Sequence, position: int) -> F32 | float:
        """The feature of the token before a position of a sequence, up to which all are computed."""
        if not position:
            return 0.0
        seen = self._seen.get(seq.number)
        if seen is not None and seen.first < position <= seen.first + len(seen.rows):
            return seen.rows[position - 1 - seen.first]
        size = self._batch.page_size
        return 0.0 if position % size else self._ends[seq.pages[position // size - 1]]
