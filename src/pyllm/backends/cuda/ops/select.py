"""Parts of a value: aligned columns are a view, rows are a copy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.backends.cuda.launch import View
from pyllm.backends.cuda.ops.elementwise import apply, elementwise
from pyllm.backends.cuda.rules import emit
from pyllm.program.ops.select import SelectRows, Slice

if TYPE_CHECKING:
    from pyllm.backends.cuda.lowering import Lowering, Node


@emit(Slice)
def slice_(low: Lowering, node: Node, op: Slice) -> None:
    x = low.f32(op.x)
    part = View(x.buffer, x.ld, x.offset + 4 * op.start)
    if op.start % 4 == 0 and op.out.id not in low.graph.sent:
        node.f32 = part
    else:
        apply(low, "copy", part, None, node, 0.0, False)


@emit(SelectRows)
def select_rows(low: Lowering, node: Node, op: SelectRows) -> None:
    elementwise(low, node, "copy", op.x, selects_rows=True)
