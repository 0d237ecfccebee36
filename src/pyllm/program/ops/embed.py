"""Rows of a table, by token or by position."""

from __future__ import annotations

from pyllm.errors import ModelError
from pyllm.program.op import Op, Shapes
from pyllm.program.values import Weight
from pyllm.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Embed(Op):
    """out = table[tokens] * scale, or table[positions] * scale. table [n_vocab or positions, n_embd], any matrix.

    A table of positions has a row for each that a sequence may reach.
    """

    table: Weight
    scale: float = 1.0
    of_positions: bool = False

    def infer(self, shapes: Shapes) -> int:
        shape = shapes.shape(self.table)
        if len(shape) != 2:
            raise ModelError(f"tensor {self.table} has shape {list(shape)}, but an embedding table has two axes")
        return shape[1]
