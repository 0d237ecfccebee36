"""Parts of a value, and columns of two by head."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx

from pyllm.backends.mlx.rules import rule
from pyllm.program.ops.select import JoinHeads, SelectRows, Slice

if TYPE_CHECKING:
    from pyllm.backends.mlx.lowering import Step


@rule(Slice)
def _slice(s: Step, op: Slice) -> mx.array:
    return s[op.x][:, op.start : op.start + op.width]


@rule(SelectRows)
def _select_rows(s: Step, op: SelectRows) -> mx.array:
    return s[op.x][s.inputs["rows"]]


@rule(JoinHeads)
def _join_heads(s: Step, op: JoinHeads) -> mx.array:
    a, b = (s[v].reshape(s[v].shape[0], -1, dim) for v, dim in zip((op.a, op.b), op.dims, strict=True))
    joined = mx.concatenate([a, mx.broadcast_to(b, (*a.shape[:2], b.shape[2]))], axis=2)
    return joined.reshape(a.shape[0], op.out.width)
