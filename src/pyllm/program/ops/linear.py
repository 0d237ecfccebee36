"""Matrix products."""

from __future__ import annotations

from pyllm.program.op import Op, Shapes
from pyllm.program.values import Value, Weight
from pyllm.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear(Op):
    """out = x @ weight.T + bias. weight [out.width, x.width], bias [out.width]."""

    x: Value
    weight: Weight
    bias: Weight | None = None

    def infer(self, shapes: Shapes) -> int:
        rows = shapes.rows(self.weight, self.x.width)
        shapes.require(self.bias, (rows,))
        return rows
