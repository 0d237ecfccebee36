"""Matrix products."""

from __future__ import annotations

from pyllm.errors import ModelError
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


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadLinear(Op):
    """out[:, h] = x[:, h] @ weight[h].T: a product for each head, with a matrix of its own.

    x [tokens, n_heads * columns], weight [n_heads, rows, columns], without the first axis where there is one head,
    out [tokens, n_heads * rows].
    """

    x: Value
    weight: Weight
    n_heads: int

    def infer(self, shapes: Shapes) -> int:
        n, shape = self.n_heads, shapes.shape(self.weight)
        if n < 1 or self.x.width % n:
            raise ModelError(f"{self.x.width} columns are not those of {n} heads")
        matrix = shape[-2] if len(shape) > 1 else 1, self.x.width // n
        shapes.require(self.weight, (n, *matrix), *([matrix] if n == 1 else []))
        return n * matrix[0]
