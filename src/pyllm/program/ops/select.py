"""Parts of a value: some of its columns, some of its rows."""

from __future__ import annotations

from typing import ClassVar

from pyllm.errors import ModelError
from pyllm.program.op import Op, Shapes
from pyllm.program.values import Value
from pyllm.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice(Op):
    """out = x[:, start : start + width]; for files that store several projections as one matrix."""

    x: Value
    start: int
    width: int

    def infer(self, shapes: Shapes) -> int:
        stop = self.start + self.width
        if self.start < 0 or self.width < 1 or stop > self.x.width:
            raise ModelError(f"columns {self.start} to {stop} are not within {self.x.width} columns")
        return self.width


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectRows(Op):
    """out = x[rows]: the output rows, those whose logits a step returns."""

    x: Value

    selects_rows: ClassVar[bool] = True

    def infer(self, shapes: Shapes) -> int:
        if self.x.id in shapes.selected:
            raise ModelError("rows are selected already; SelectRows takes a value of all tokens")
        return self.x.width
