"""Rows of a table, by token or by position."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.backends.reference.rules import F32, State, rule
from pyllm.program.ops.embed import Embed

if TYPE_CHECKING:
    from pyllm.backends.base import Batch
    from pyllm.backends.reference.backend import ReferenceExecutable


@rule(Embed)
def _embed(exe: ReferenceExecutable, op: Embed, batch: Batch, state: State) -> F32:
    which = batch.positions if op.of_positions else batch.tokens
    return exe.weights.rows(op.table, which[: batch.n_tokens]) * op.scale
