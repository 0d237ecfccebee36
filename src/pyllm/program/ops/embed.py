"""Rows of a table, by token."""

from __future__ import annotations

from pyllm.errors import ModelError
from pyllm.program.op import Op, Shapes
from pyllm.program.values import Weight
from pyllm.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Embed(Op):
    """out = table[tokens] * scale. table [n_vocab, n_embd], any matrix."""

    table: Weight
    scale: float = 1.0

    def infer(self, shapes: Shapes) -> int:
        shape = shapes.shape(self.table)
        if len(shape) != 2:
            raise ModelError(f"tensor {self.table} has shape {list(shape)}, but an embedding table has two axes")
        return shape[1]
