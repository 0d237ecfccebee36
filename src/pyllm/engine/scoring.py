"""Rows of given tokens, logits or hidden states: their consumers, and how an engine is driven for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Many
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pyllm.backends.base import Executable
from pyllm.config import ExecutionOptions
from pyllm.engine.generation import again
from pyllm.engine.mailbox import Mailbox
from pyllm.engine.request import FinishReason
from pyllm.engine.rows import SequenceRows
from pyllm.engine.sequence import Consumer, Sequence

RowCallback = Callable[[int, NDArray[np.float32]], None]
"""take(token of the first row, rows [n, n_vocab]); the rows are overwritten by the next step."""


class RowBlocks(Consumer):
    """Copies of the rows in blocks, computed on demand."""

    def __init__(self, hidden: bool) -> None:
        self.hidden = hidden
        self.mailbox: Mailbox[NDArray[np.float32]] = Mailbox(1)
        self.wanted = False
        """Whether the reader waits for a block; set by it, cleared when a block comes."""

    @property
    def back_pressured(self) -> bool:
        return not self.wanted

    def take(self, seq: Sequence, rows: SequenceRows) -> FinishReason | None:
        self.wanted = False
        seq.next_row += rows.n
        self.mailbox.put(rows.block().copy())
        return "stop" if seq.next_row == seq.n_tokens else None


class StreamedRows(Consumer):
    """Passes rows to a callback without a copy; the mailbox only tells the end."""

    def __init__(self, take: RowCallback, hidden: bool = False) -> None:
        self.hidden = hidden
        self.mailbox: Mailbox[None] = Mailbox(1)
        self._take = take

    def take(self, seq: Sequence, rows: SequenceRows) -> FinishReason | None:
        self._take(seq.next_row, rows.block())
        seq.next_row += rows.n
        return "stop" if seq.next_row == seq.n_tokens else None


Tokens = Many[int] | NDArray[np.integer]
Wanted = tuple[Tokens, RowCallback, int]
"""A sequence, what takes its rows, and the first token whose row is wanted."""


class Driven(Protocol):
    """An engine."""

    @property
    def executable(self) -> Executable: ...
    def sequence_of(self, tokens: Tokens, consumer: Consumer, first_row: int = 0) -> Sequence: ...
    def start(self, *sequences: Sequence) -> None: ...
    def drop(self, seq: Sequence) -> None: ...
    def resume(self) -> None: ...


def blocks(engine: Driven, tokens: Tokens) -> Iterator[NDArray[np.float32]]:
    """Logits of all tokens in blocks, each computed when it is asked for."""
    consumer = RowBlocks(hidden=False)
    seq = engine.sequence_of(tokens, consumer)

    def read() -> Iterator[NDArray[np.float32]]:
        given = 0
        try:
            engine.start(seq)
            while given < seq.n_prompt:
                if not consumer.mailbox:
                    consumer.wanted = True
                    engine.resume()
                    _wait(seq)
                block = consumer.mailbox.take()
                assert block is not None
                given += len(block)
                yield block
        finally:
            _leave(engine, seq)

    return read()


def all_rows(engine: Driven, tokens: Tokens, hidden: bool) -> NDArray[np.float32]:
    """Logits or hidden states of all tokens."""
    taken: list[NDArray[np.float32]] = []

    def take(at: int, block: NDArray[np.float32]) -> None:
        if not taken:
            taken.append(np.empty((seq.n_prompt, block.shape[1]), np.float32))
        taken[0][at : at + len(block)] = block

    seq = engine.sequence_of(tokens, StreamedRows(take, hidden))
    try:
        engine.start(seq)
        _wait(seq)
    finally:
        _leave(engine, seq)
    return taken[0]


def side_by_side(engine: Driven, sequences: Iterable[Wanted], hidden: bool) -> Iterator[int]:
    """Compute logits or hidden states of sequences side by side; yields their numbers in order.

    They start together, some steps' work at a time, so that steps are cut alike whenever the same is scored: the last
    bits may depend on that (reference).
    """
    waiting, live = enumerate(sequences), deque[tuple[int, Sequence]]()
    try:
        while True:
            room = _Room(engine.executable.options)
            for number, (tokens, take, first) in waiting:
                live.append((number, engine.sequence_of(tokens, StreamedRows(take, hidden), first)))
                if not room.has_more_after(live[-1][1]):
                    break
            if not live:
                return
            engine.start(*(seq for _, seq in live))
            while live:
                number, seq = live[0]
                _wait(seq)
                live.popleft()
                yield number
    finally:
        for _, seq in live:
            _leave(engine, seq)


def _wait(seq: Sequence) -> None:
    """Wait until there is something to read of a sequence, or it is over; raises its error."""
    mailbox = seq.consumer.mailbox
    if not mailbox:
        mailbox.wait()
    if not mailbox and seq.error is not None:
        raise again(seq.error)


def _leave(engine: Driven, seq: Sequence) -> None:
    if seq.finish_reason is None:
        engine.drop(seq)


_STEPS = 8
"""Steps that sequences which start together fill, where memory has room for so many; the last is not always full."""


class _Room:
    """How many sequences are computed side by side."""

    def __init__(self, options: ExecutionOptions) -> None:
        self._options = options
        self._seqs = self._pages = self._tokens = 0

    def has_more_after(self, seq: Sequence) -> bool:
        """Whether there is room for another sequence like this one, when it has come."""
        o = self._options
        pages = -(-seq.n_tokens // o.page_size)
        self._seqs, self._pages, self._tokens = self._seqs + 1, self._pages + pages, self._tokens + seq.n_tokens
        return (
            self._seqs < o.max_seqs
            and self._pages + pages <= o.n_pages
            and self._tokens < _STEPS * o.max_tokens
        )  # fmt: skip
