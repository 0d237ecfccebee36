"""Scalar products of two values."""

from __future__ import annotations

from pyllm.errors import ModelError
from pyllm.program.op import Op, Shapes
from pyllm.program.values import Value
from pyllm.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot(Op):
    """out[t, g] = sum over c of a[t, c] * b[t, c], c in the g-th of consecutive groups of `group` columns.

    For heads `group` is head_dim, and out [tokens, n_heads].
    """

    a: Value
    b: Value
    group: int

    def infer(self, shapes: Shapes) -> int:
        width = shapes.same_width("multiplied", self.a, self.b)
        if self.group < 1 or width % self.group:
            raise ModelError(f"groups of {self.group} columns do not divide {width} columns")
        return width // self.group
