"""Parts of a value: columns are a view if they start at a vector, rows are a copy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.backends.cpu.fusions import is_view
from pyllm.backends.cpu.ops.elementwise import apply, elementwise
from pyllm.backends.cpu.rules import emit
from pyllm.backends.cpu.table import View
from pyllm.program.ops.select import SelectRows, Slice

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
