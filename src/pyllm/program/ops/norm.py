"""Norms of rows, or of groups of columns such as heads."""

from __future__ import annotations

from dataclasses import replace
from typing import Self

from pyllm.errors import ModelError
from pyllm.program.op import Op, Shapes
from pyllm.program.values import Value, Weight
from pyllm.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RMSNorm(Op):
    """out = x / sqrt(mean(x^2) + eps) * weight + bias, over consecutive groups of `group` columns.

    `group` is the width for an ordinary norm (0: that, set on recording) and head_dim for a norm of each head; weight
    and bias [group] (or [width] or [groups, group], when a file holds one number per column), or None for none.
    """

    x: Value
    weight: Weight | None
    bias: Weight | None = None
    eps: float
    group: int = 0

    def settle(self, shapes: Shapes) -> Self:
        return self if self.group else replace(self, group=self.x.width)

    def infer(self, shapes: Shapes) -> int:
        return _infer(self, shapes)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerNorm(Op):
    """out = (x - mean) / sqrt(variance + eps) * weight + bias, over consecutive groups of `group` columns.

    The variance is the mean of (x - mean)^2. `group`, `weight` and `bias` are as `RMSNorm`'s.
    """

    x: Value
    weight: Weight | None
    bias: Weight | None = None
    eps: float
    group: int = 0

    def settle(self, shapes: Shapes) -> Self:
        return self if self.group else replace(self, group=self.x.width)

    def infer(self, shapes: Shapes) -> int:
        return _infer(self, shapes)


def _infer(op: RMSNorm | LayerNorm, shapes: Shapes) -> int:
    if op.group < 1 or op.x.width % op.group:
        raise ModelError(f"a norm over groups of {op.group} columns does not divide {op.x.width} columns")
    for vector in (op.weight, op.bias):
        shapes.require(vector, (op.group,), (op.x.width,), (op.x.width // op.group, op.group))
    return op.x.width
