"""Recurrent states of sequences: what a step saves, what is kept of it, and where a sequence goes on.

A step reads a sequence's slot and writes others, its saves: so an interrupted step leaves nothing to undo, and any
number of sequences begin at one state. Saves at the end of certain pages become checkpoints, where later sequences of
the same beginning go on.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Many

from pyllm.cache import StatePool
from pyllm.engine.sequence import Sequence

_FIRST, _FAR = 256, 2048
"""Positions of checkpoints within long prompts: _FIRST, twice as far each time up to _FAR, then every _FAR."""
_BETWEEN = 256
"""Least distance of checkpoints behind a prompt."""
_MOST = 3
"""Most checkpoints of one sequence in one step."""


class States:
    """The slots of an engine's sequences. There must be two for each running one, and some for checkpoints."""

    def __init__(self, pool: StatePool, page_size: int, max_seqs: int) -> None:
        self.pool = pool
        self._page_size = page_size
        self.spare = max_seqs
        """Slots that checkpoints leave for the ends of other sequences' steps."""

    def begin(self, seq: Sequence, shared: Many[int]) -> int:
        """How many of the published pages that match a waiting sequence it can go on after. Nothing is held yet."""
        n = self.pool.deepest(shared)
        seq.borders = self._borders(seq, n, len(shared))
        return n

    def start(self, seq: Sequence) -> None:
        """Hold the state after a sequence's published pages; for one without pages, its state is zeros."""
        self._resume(seq, seq.n_published)

    def want(self, seq: Sequence, n_pages: int) -> None:
        """Ask for a checkpoint after so many pages of a sequence: another one will go on there."""
        seq.borders.add(n_pages * self._page_size)

    def room(self, n_running: int) -> int:
        """Slots that drafts and checkpoints of a step may take while so many sequences run: each has a last state, and
        those that may still start in this step hold the checkpoint that they go on after."""
        return max(0, self.pool.n_available - self.spare - (self.spare - n_running))

    def plan(self, steps: Many[Sequence], n_running: int) -> None:
        """Choose and hold the slots that a step writes: of each sequence's last state, with drafts of the state after
        each of them, and of checkpoints. `n_running`: sequences that run, in this step or not."""
        for seq in steps:
            self.abandon(seq)
            ends = range(seq.n_step - seq.n_draft, seq.n_step + 1)
            seq.saves = list(zip(ends, self.pool.allocate(len(ends)), strict=True))
        for seq in steps:
            if seq.consumer.shares and seq.n_step > 1 and not seq.n_draft:
                inner = sorted(self._inner(seq)[: min(_MOST, self.room(n_running))])
                slots = self.pool.allocate(len(inner))
                seq.saves[:0] = [(p - seq.n_computed, slot) for p, slot in zip(inner, slots, strict=True)]

    def commit(self, seq: Sequence) -> None:
        """Take over the states of a step whose tokens are computed and published, drafts apart."""
        n_known = seq.n_step - seq.n_draft
        seq.saved_from = seq.n_computed - n_known
        while seq.saves[0][0] < n_known:
            after, slot = seq.saves.pop(0)
            self._keep(seq, seq.saved_from + after, slot)
            self.pool.release(slot)
        self.advance(seq)

    def advance(self, seq: Sequence) -> None:
        """Take over what a step saved up to `n_computed`, whose pages are published: the state after the tokens that
        were known, and after each draft that was right."""
        while seq.saves and seq.saved_from + seq.saves[0][0] <= seq.n_computed:
            if seq.slot >= 0:
                self.pool.release(seq.slot)
            after, seq.slot = seq.saves.pop(0)
            position = seq.saved_from + after
            if seq.consumer.shares and self._is_wanted(seq, position):
                self._keep(seq, position, seq.slot)

    def abandon(self, seq: Sequence) -> None:
        """Let go of what a step would have saved."""
        for _, slot in seq.saves:
            self.pool.release(slot)
        seq.saves = []

    def go_back(self, seq: Sequence, n_pages: int) -> int:
        """Let go of a sequence's state; returns how many of its first pages it can go on after, at most `n_pages`, all
        published. The state there is held."""
        self.abandon(seq)
        if seq.slot >= 0:
            self.pool.release(seq.slot)
        n = self.pool.deepest(seq.pages[:n_pages])
        self._resume(seq, n)
        return n

    def check(self, running: Iterable[Sequence]) -> None:
        """Raise AssertionError where slots and sequences do not fit together."""
        held = []
        for seq in running:
            assert (seq.slot >= 0) == (seq.n_computed > 0), "a sequence has the state of other tokens than it computed"
            held += [seq.slot] * (seq.slot >= 0) + [slot for _, slot in seq.saves]
        self.pool.check(held)

    def _resume(self, seq: Sequence, n: int) -> None:
        """Hold the checkpoint of a sequence's n-th page; for no page, its state is zeros."""
        seq.slot = self.pool.take(seq.pages[n - 1]) if n else -1
        seq.last_checkpoint = n * self._page_size

    def _borders(self, seq: Sequence, n: int, n_matched: int) -> set[int]:
        """Positions of checkpoints that a sequence asks for, which goes on after n pages: where the same prompt goes
        on, before the last turn, and where others have gone on with other tokens."""
        size = self._page_size
        pages = ((seq.n_tokens - 1) // size, (seq.n_prefix or 0) // size, n_matched)
        return {page * size for page in pages if page > n}

    def _inner(self, seq: Sequence) -> list[int]:
        """Positions of checkpoints within a sequence's tokens of the step, those that it asks for first."""
        size, first = self._page_size, seq.n_computed
        pages = range((first // size + 1) * size, first + seq.n_step, size)
        wanted = [p for p in pages if p in seq.borders]
        return wanted + [p for p in pages if p not in seq.borders and self._is_wanted(seq, p)]

    def _is_wanted(self, seq: Sequence, position: int) -> bool:
        if position % self._page_size:
            return False
        if position > seq.n_given:
            return position - seq.last_checkpoint >= _BETWEEN
        doubled = position >= _FIRST and (position % _FAR == 0 or position & (position - 1) == 0)
        return position in seq.borders or doubled

    def _keep(self, seq: Sequence, position: int, slot: int) -> None:
        self.pool.keep(seq.pages[position // self._page_size - 1], slot)
        seq.last_checkpoint = position
