"""Recurrent ops on the reference backend: each sequence's tokens in pieces that end at saves."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from pyllm.backends.reference.rules import F32
from pyllm.program import Recurrent

if TYPE_CHECKING:
    from pyllm.backends.base import Batch
    from pyllm.backends.reference.backend import ReferenceExecutable

Advance = Callable[[slice, F32], F32]
"""Computes rows `slice` of an op's value; changes the state before them, an array of the op's shape, to that after
them."""


def scan(exe: ReferenceExecutable, op: Recurrent, batch: Batch, advance: Advance) -> F32:
    """The op's value [tokens, width]; reads states from the batch's slots and writes its saves.

    To be independent of how a sequence is cut, `advance` must compute each row by itself.
    """
    slots = exe.slots[op.state]
    out = np.empty((batch.n_tokens, op.out.width), np.float32)
    for seq, (first, _) in enumerate(batch.spans[: batch.n_seqs].tolist()):
        source = int(batch.state_in[seq])
        state = np.zeros(slots.shape[1:], np.float32) if source < 0 else slots[source].copy()
        done = 0
        save, n_saves = batch.saves[seq].tolist()
        for i in range(save, save + n_saves):
            exe.check_interrupt()
            after = int(batch.save_after[i])
            rows = slice(first + done, first + after)
            out[rows] = advance(rows, state)
            slots[batch.save_slot[i]] = state
            done = after
    return out
