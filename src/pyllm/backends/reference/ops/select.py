"""Parts of a value."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyllm.backends.reference.rules import F32, State, rule
from pyllm.program.ops.select import SelectRows, Slice

if TYPE_CHECKING:
    from pyllm.backends.base import Batch
    from pyllm.backends.reference.backend import ReferenceExecutable


@rule(Slice)
def _slice(exe: ReferenceExecutable, op: Slice, batch: Batch, state: State) -> F32:
    return np.ascontiguousarray(state[op.x.id][:, op.start : op.start + op.width])


@rule(SelectRows)
def _select_rows(exe: ReferenceExecutable, op: SelectRows, batch: Batch, state: State) -> F32:
    return state[op.x.id][batch.rows[: batch.n_rows]]
