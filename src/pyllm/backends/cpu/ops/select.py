"""Parts of a value: columns are a view if they start at a vector, rows are a copy; columns of two by head are too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.backends.cpu.arguments import select as arguments
from pyllm.backends.cpu.fusions import is_view
from pyllm.backends.cpu.kernels import kernel
from pyllm.backends.cpu.ops.elementwise import apply, elementwise
from pyllm.backends.cpu.rules import emit
from pyllm.backends.cpu.table import View
from pyllm.program.ops.select import JoinHeads, SelectRows, Slice

if TYPE_CHECKING:
    from pyllm.backends.cpu.lowering import Lowering
    from pyllm.backends.cpu.values import Node


@emit(Slice)
def slice_(low: Lowering, node: Node, op: Slice) -> None:
    x = low.f32(op.x)
    part = View(x.buffer, x.ld, x.offset + 4 * op.start)
    if is_view(low.graph, op):
        node.f32 = part
    else:
        apply(low, "copy", part, part, low.new_f32(node), node, 0.0, 0)


@emit(SelectRows)
def select_rows(low: Lowering, node: Node, op: SelectRows) -> None:
    if low.wants(node) == {"q8"}:
        low.quantize(node, low.f32(op.x), selects_rows=1)
    else:
        elementwise(low, node, "copy", op.x, selects_rows=1)


@emit(JoinHeads)
def join_heads(low: Lowering, node: Node, op: JoinHeads) -> None:
    a_dim, b_dim = op.dims
    low.table.add(
        kernel("select", "join_heads"),
        arguments.JoinHeads(
            a=low.f32(op.a), b=low.f32(op.b), y=low.new_f32(node), n_heads=op.n_heads, a_dim=a_dim, b_dim=b_dim,
            b_stride=0 if op.shared else 4 * b_dim, rows=low.range(node),
        ),
        label="join heads",
    )  # fmt: skip
