"""Parts of a value, and columns of two by head."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyllm.backends.reference.rules import F32, State, rule
from pyllm.program.ops.select import JoinHeads, SelectRows, Slice

if TYPE_CHECKING:
    from pyllm.backends.base import Batch
    from pyllm.backends.reference.backend import ReferenceExecutable


@rule(Slice)
def _slice(exe: ReferenceExecutable, op: Slice, batch: Batch, state: State) -> F32:
    return np.ascontiguousarray(state[op.x.id][:, op.start : op.start + op.width])


@rule(SelectRows)
def _select_rows(exe: ReferenceExecutable, op: SelectRows, batch: Batch, state: State) -> F32:
    return state[op.x.id][batch.rows[: batch.n_rows]]


@rule(JoinHeads)
def _join_heads(exe: ReferenceExecutable, op: JoinHeads, batch: Batch, state: State) -> F32:
    a, b = (state[v.id].reshape(len(state[v.id]), -1, dim) for v, dim in zip((op.a, op.b), op.dims, strict=True))
    joined = np.concatenate([a, np.broadcast_to(b, (*a.shape[:2], b.shape[2]))], axis=2)
    return joined.reshape(len(a), -1)
