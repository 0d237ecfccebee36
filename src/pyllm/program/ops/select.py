"""Parts of a value, some of its columns or rows, and columns of two values by head."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinHeads(Op):
    """Each head's columns are those of a, then those of b.

    a [tokens, n_heads * a_dim], b [tokens, n_heads * b_dim], or [tokens, b_dim] where it is `shared` by all heads; out
    [tokens, n_heads * (a_dim + b_dim)].
    """

    a: Value
    b: Value
    n_heads: int
    shared: bool = False

    @property
    def dims(self) -> tuple[int, int]:
        """Columns of a head of a and of b."""
        return self.a.width // self.n_heads, self.b.width // (1 if self.shared else self.n_heads)

    def infer(self, shapes: Shapes) -> int:
        n = self.n_heads
        if n < 1 or self.a.width % n or (not self.shared and self.b.width % n):
            raise ModelError(f"{self.a.width} and {self.b.width} columns are not those of {n} heads")
        shapes.same_rows(self.a, self.b)
        return n * sum(self.dims)
