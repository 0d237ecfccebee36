"""Norms, with the selection of rows that they norm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.backends.cuda import elementwise
from pyllm.backends.cuda.launch import Buffer
from pyllm.backends.cuda.rules import emit
from pyllm.program.ops.norm import LayerNorm, RMSNorm
from pyllm.program.ops.select import SelectRows

if TYPE_CHECKING:
    from pyllm.backends.cuda.lowering import Lowering, Node


@emit(RMSNorm)
@emit(LayerNorm)
def norm(low: Lowering, node: Node, op: RMSNorm | LayerNorm) -> None:
    """With the selection of rows that it norms, where that is not there yet."""
    source, picked = low.node(op.x), False
    if isinstance(source.op, SelectRows) and not source.computed and source.only_reader is op:
        source, picked = low.node(source.op.x), True
    x = low.f32(source.value)
    y = low.new_forms(node, low.wants(node))
    bias = op.bias if isinstance(op, LayerNorm) else None
    low.add(
        node,
        elementwise.norm(
            low.arrays, node.count, x=x, y=y, weight=_by_group(low, op, op.weight),
            bias=_by_group(low, op, bias), centred=isinstance(op, LayerNorm), eps=op.eps, group=op.group,
            width=op.out.width, picked=picked,
        ),
    )  # fmt: skip


def _by_group(low: Lowering, op: RMSNorm | LayerNorm, name: str | None) -> tuple[Buffer, int] | None:
    """Where weights or biases are, and floats from one group's to the next's."""
    if name is None:
        return None
    columns = low.weights[name].n_elements
    return low.weights.vector([(name, columns)]), op.group if columns > op.group else 0
