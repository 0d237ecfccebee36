"""Scalar products."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.backends.cpu.arguments import dot as arguments
from pyllm.backends.cpu.kernels import kernel
from pyllm.backends.cpu.rules import emit
from pyllm.program.ops.dot import Dot

if TYPE_CHECKING:
    from pyllm.backends.cpu.lowering import Lowering
    from pyllm.backends.cpu.values import Node


@emit(Dot)
def dot(low: Lowering, node: Node, op: Dot) -> None:
    a, b, y = low.f32(op.a), low.f32(op.b), low.new_f32(node)
    low.table.add(
        kernel("dot", "dot"),
        arguments.Dot(a=a, b=b, y=y, group=op.group, n_groups=op.out.width, rows=low.range(node)),
        label="dot",
    )
