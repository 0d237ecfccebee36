"""Factors by position."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx

from pyllm.backends.mlx.rules import rule
from pyllm.program.ops.position import PositionScale

if TYPE_CHECKING:
    from pyllm.backends.mlx.lowering import Step


@rule(PositionScale)
def _position_scale(s: Step, op: PositionScale) -> mx.array:
    which = mx.minimum((s.inputs["positions"] + op.offset) // op.length, len(op.factors) - 1)
    return s[op.x] * mx.array(op.factors)[which][:, None]
