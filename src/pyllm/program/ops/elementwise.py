"""Arithmetic on single numbers."""

from __future__ import annotations

import math

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
        if self.x.width % math.prod(shapes.shape(self.weight)):
            shapes.refuse(self.weight, (self.x.width,))
        return self.x.width


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftCap(Op):
    """out = cap * tanh(x / cap)."""

    x: Value
    cap: float

    def infer(self, shapes: Shapes) -> int:
        return self.x.width
