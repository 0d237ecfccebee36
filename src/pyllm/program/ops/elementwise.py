"""Arithmetic on single numbers."""

from __future__ import annotations

import math

from pyllm.errors import ModelError
from pyllm.program.op import Op, Shapes
from pyllm.program.values import Value, Weight
from pyllm.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Add(Op):
    """out = a + b."""

    a: Value
    b: Value

    def infer(self, shapes: Shapes) -> int:
        return shapes.same_width("added", self.a, self.b)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale(Op):
    """out = x * factor."""

    x: Value
    factor: float

    def infer(self, shapes: Shapes) -> int:
        return self.x.width


@dataclass(frozen=True, slots=True, kw_only=True)
class MulWeight(Op):
    """out = x * weight. weight has n numbers, n a divisor of the width: each holds for width / n consecutive columns.

    So n = width multiplies columns, n = n_heads heads, n = 1 everything.
    """

    x: Value
    weight: Weight

    def infer(self, shapes: Shapes) -> int:
        return _spread_width(self, shapes)


@dataclass(frozen=True, slots=True, kw_only=True)
class AddWeight(Op):
    """out = x + weight, of as many numbers as `MulWeight`'s."""

    x: Value
    weight: Weight

    def infer(self, shapes: Shapes) -> int:
        return _spread_width(self, shapes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clamp(Op):
    """out = x, at least -most and at most `most`."""

    x: Value
    most: float

    def infer(self, shapes: Shapes) -> int:
        if not self.most > 0:
            raise ModelError(f"numbers cannot be clamped to {self.most}")
        return self.x.width


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftCap(Op):
    """out = cap * tanh(x / cap)."""

    x: Value
    cap: float

    def infer(self, shapes: Shapes) -> int:
        return self.x.width


def _spread_width(op: MulWeight | AddWeight, shapes: Shapes) -> int:
    if op.x.width % math.prod(shapes.shape(op.weight)):
        shapes.refuse(op.weight, (op.x.width,))
    return op.x.width
