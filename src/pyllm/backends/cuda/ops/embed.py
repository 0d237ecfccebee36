"""Rows of a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.backends.cuda import linear
from pyllm.backends.cuda.rules import emit
from pyllm.program.ops.embed import Embed

if TYPE_CHECKING:
    from pyllm.backends.cuda.lowering import Lowering, Node


@emit(Embed)
def embed(low: Lowering, node: Node, op: Embed) -> None:
    table = low.weights.table(op.table)
    tensor = low.weights[op.table]
    y = low.new_f32(node)
    low.add(node, linear.embed(low.arrays, tensor, table, y, op.scale, op.of_positions))
