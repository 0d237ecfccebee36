"""Consumers of the rows of given tokens: logits or hidden states."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

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
