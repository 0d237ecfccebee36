"""Norms, fused with the sum or the selection of rows before them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.backends.cuda import elementwise
from pyllm.backends.cuda.rules import emit
from pyllm.backends.plan.groups import Norm
from pyllm.program.ops.norm import LayerNorm, RMSNorm

if TYPE_CHECKING:
    from pyllm.backends.cuda.lowering import Lowering, Node


@emit(RMSNorm)
@emit(LayerNorm)
def norm(low: Lowering, node: Node, op: RMSNorm | LayerNorm) -> None:
    """Emit a norm, with the sum or the selection of rows before it."""
    group, z, total = low.groups.of(op.out), None, None
    assert isinstance(group, Norm)
    if group.add:
        x, z = low.f32(group.add.a), low.f32(group.add.b)
        if group.keeps_sum:
            total = low.new_f32(low.node(group.add.out))
    else:
        x = low.f32(group.select.x if group.select else op.x)
    y = low.new_forms(node, low.wants(node))
    low.add(
        node,
        elementwise.norm(
            low.arrays, node.count, x=x, y=y, weight=low.weights.by_group(op.weight, op.group),
            bias=low.weights.by_group(op.bias, op.group), centred=isinstance(op, LayerNorm), eps=op.eps, group=op.group,
            width=op.out.width, selects_rows=group.select is not None, z=z, total=total,
        ),
    )  # fmt: skip
