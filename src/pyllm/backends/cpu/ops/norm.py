"""Norms, fused with the sum or the selection of rows before them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.backends.cpu.arguments import norm as arguments
from pyllm.backends.cpu.kernels import kernel
from pyllm.backends.cpu.rules import emit
from pyllm.backends.cpu.table import round_up
from pyllm.backends.plan.groups import Norm
from pyllm.program.ops.norm import LayerNorm, RMSNorm

if TYPE_CHECKING:
    from pyllm.backends.cpu.lowering import Lowering
    from pyllm.backends.cpu.values import Node


@emit(RMSNorm)
@emit(LayerNorm)
def norm(low: Lowering, node: Node, op: RMSNorm | LayerNorm) -> None:
    """Emit a norm, with the sum or the selection of rows before it."""
    group, b, h = low.groups.of(op.out), None, None
    assert isinstance(group, Norm)
    if group.add:
        x, b = low.f32(group.add.a), low.f32(group.add.b)
        if group.keeps_sum:
            h = low.new_f32(low.node(group.add.out))
    else:
        x = low.f32(group.select.x if group.select else op.x)
    selects_rows = int(group.select is not None)
    y = low.new_forms(node)
    weight, weight_step = low.weights.by_group(op.weight, op.group)
    bias, bias_step = low.weights.by_group(op.bias, op.group)
    low.table.need_scratch(4 * round_up(op.out.width, 32))
    low.table.add(
        kernel("norm", "norm", centred=int(isinstance(op, LayerNorm))),
        arguments.Norm(
            x=x, b=b, h=h, y=y, records=node.q8, weight=weight, weight_step=weight_step, bias=bias,
            bias_step=bias_step, eps=op.eps, group=op.group, n_groups=op.out.width // op.group, rows=low.range(node),
            selects_rows=selects_rows, scratch=low.table.scratch, wide_from=low.wide_from(node),
        ),
        label="norm" + " of sum" * (b is not None),
    )  # fmt: skip
