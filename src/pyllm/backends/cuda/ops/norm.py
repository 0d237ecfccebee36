"""Norms, with the sum or the selection of rows that they norm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.backends.cuda import elementwise
from pyllm.backends.cuda.rules import emit
from pyllm.backends.plan.groups import Norm
from pyllm.backends.plan.memory import Buffer
from pyllm.program.ops.norm import LayerNorm, RMSNorm

if TYPE_CHECKING:
    from pyllm.backends.cuda.lowering import Lowering, Node


@emit(RMSNorm)
@emit(LayerNorm)
def norm(low: Lowering, node: Node, op: RMSNorm | LayerNorm) -> None:
    """With the sum, or the selection of rows, that it norms."""
    group, z, total = low.groups.of(op.out), None, None
    assert isinstance(group, Norm)
    if group.add:
        x, z = low.f32(group.add.a), low.f32(group.add.b)
        if group.keeps_sum:
            total = low.new_f32(low.node(group.add.out))
    else:
        x = low.f32(group.select.x if group.select else op.x)
    y = low.new_forms(node, low.wants(node))
    bias = op.bias if isinstance(op, LayerNorm) else None
    low.add(
        node,
        elementwise.norm(
            low.arrays, node.count, x=x, y=y, weight=_by_group(low, op, op.weight),
            bias=_by_group(low, op, bias), centred=isinstance(op, LayerNorm), eps=op.eps, group=op.group,
            width=op.out.width, picked=group.select is not None, z=z, total=total,
        ),
    )  # fmt: skip


def _by_group(low: Lowering, op: RMSNorm | LayerNorm, name: str | None) -> tuple[Buffer, int] | None:
    """Where weights or biases are, and floats from one group's to the next's."""
    if name is None:
        return None
    columns = low.weights[name].n_elements
    return low.weights.vector([(name, columns)]), op.group if columns > op.group else 0
