"""Norms, with the selection of rows that they norm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.backends.cuda import elementwise
from pyllm.backends.cuda.rules import emit
from pyllm.program.ops.norm import RMSNorm
from pyllm.program.ops.select import SelectRows

if TYPE_CHECKING:
    from pyllm.backends.cuda.lowering import Lowering, Node


@emit(RMSNorm)
def norm(low: Lowering, node: Node, op: RMSNorm) -> None:
    """With the selection of rows that it norms, where that is not there yet."""
    source, picked = low.node(op.x), False
    if isinstance(source.op, SelectRows) and not source.computed and source.only_reader is op:
        source, picked = low.node(source.op.x), True
    x = low.f32(source.value)
    y = low.new_forms(node, low.wants(node))
    weight, step = None, 0
    if op.weight is not None:
        columns = low.weights[op.weight].n_elements
        weight, step = low.weights.vector([(op.weight, columns)]), op.group if columns > op.group else 0
    low.add(
        node,
        elementwise.norm(
            low.arrays, node.count, x=x, y=y, weight=weight, weight_step=step, eps=op.eps, group=op.group,
            width=op.out.width, picked=picked,
        ),
    )  # fmt: skip
