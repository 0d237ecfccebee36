"""Arithmetic on single numbers."""

from __future__ import annotations

from dataclasses import dataclass

from pyllm.program.op import Op, Shapes
from pyllm.program.values import Value


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
class SoftCap(Op):
    """out = cap * tanh(x / cap)."""

    x: Value
    cap: float

    def infer(self, shapes: Shapes) -> int:
        return self.x.width
