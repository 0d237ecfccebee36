"""Parts of a value."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx

from pyllm.backends.mlx.rules import rule
from pyllm.program.ops.select import SelectRows, Slice

if TYPE_CHECKING:
    from pyllm.backends.mlx.lowering import Step


@rule(Slice)
def _slice(s: Step, op: Slice) -> mx.array:
    return s[op.x][:, op.start : op.start + op.width]


@rule(SelectRows)
def _select_rows(s: Step, op: SelectRows) -> mx.array:
    return s[op.x][s.inputs["rows"]]
