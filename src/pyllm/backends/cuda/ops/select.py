"""Parts of a value: aligned columns are a view, rows are a copy; columns of two by head are too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.backends.cuda.launch import Launch, View, fill, struct
from pyllm.backends.cuda.ops.elementwise import apply, elementwise
from pyllm.backends.cuda.rules import emit
from pyllm.program.ops.select import JoinHeads, SelectRows, Slice

if TYPE_CHECKING:
    from pyllm.backends.cuda.lowering import Lowering, Node

_THREADS = 256
_JOIN = struct(
    a="ptr", b="ptr", y="ptr", count="ptr", lda="int", ldb="int", ldy="int", n_heads="int", a_dim="int", b_dim="int",
    b_step="int",
)  # fmt: skip


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


@emit(JoinHeads)
def join_heads(low: Lowering, node: Node, op: JoinHeads) -> None:
    a, b, y, width = low.f32(op.a), low.f32(op.b), low.new_f32(node), op.out.width
    a_dim, b_dim = op.dims
    launch = Launch(
        "select.cu",
        "join_heads",
        lambda shape: (-(-width // _THREADS), node.count.of(shape), 1),
        _THREADS,
        lambda shape: fill(
            _JOIN, a=a, b=b, y=y, count=low.arrays.count(node.count), lda=a.ld, ldb=b.ld, ldy=y.ld, n_heads=op.n_heads,
            a_dim=a_dim, b_dim=b_dim, b_step=0 if op.shared else b_dim,
        ),
        "join heads",
        reads=(a.buffer, b.buffer),
        writes=(y.buffer,),
    )  # fmt: skip
    low.add(node, launch)
