"""Matrix products in a program's launches: those of one input side by side, fused with a residual sum."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.backends.cuda import linear as plans
from pyllm.backends.cuda.launch import Launch, View, fill, struct
from pyllm.backends.cuda.rules import emit
from pyllm.backends.plan.groups import Product
from pyllm.program.ops.linear import HeadLinear, Linear

if TYPE_CHECKING:
    from pyllm.backends.cuda.lowering import Lowering, Node

_WARPS, _TOKENS = 4, 8
_HEADS = struct(
    x="ptr", weight="ptr", y="ptr", count="ptr", ldx="int", ldy="int", rows="int", columns="int"
)  # fmt: skip


@emit(Linear)
def linear(low: Lowering, node: Node, op: Linear) -> None:
    """Emit a product; `node` is its value, or that of its sum with a residual."""
    group = low.groups.of(node.value)
    assert isinstance(group, Product)
    ops = [o for o in group.products if isinstance(o, Linear)]
    names = [o.weight for o in ops]
    plan, weight = low.weights.matrix(names)
    residual = low.f32(group.residual) if group.residual else None
    x = low.forms(op.x, low.x_forms(node, names))
    bias = low.weights.vector([(o.bias, o.out.width) for o in ops]) if any(o.bias for o in ops) else None
    y = low.new_f32(node) if len(ops) == 1 else _side_by_side(low, ops)
    low.add(node, plans.product(low.arrays, node.count, plan, weight, x, y, low.parts, bias=bias, residual=residual))


@emit(HeadLinear)
def head_linear(low: Lowering, node: Node, op: HeadLinear) -> None:
    """The matrices are kept as float32."""
    x, y = low.f32(op.x), low.new_f32(node)
    weight = low.weights.vector([(op.weight, low.weights[op.weight].n_elements)])
    rows, columns = op.out.width // op.n_heads, op.x.width // op.n_heads
    launch = Launch(
        "linear_heads.cu",
        "linear_heads",
        lambda shape: (-(-rows // _WARPS), op.n_heads, -(-node.count.of(shape) // _TOKENS)),
        32 * _WARPS,
        lambda shape: fill(
            _HEADS, x=x, weight=weight, y=y, count=low.arrays.count(node.count), ldx=x.ld, ldy=y.ld, rows=rows,
            columns=columns,
        ),
        "product by head",
        defines={"WARPS": _WARPS, "TOKENS": _TOKENS},
        reads=(x.buffer,),
        writes=(y.buffer,),
    )  # fmt: skip
    low.add(node, launch)


def _side_by_side(low: Lowering, ops: list[Linear]) -> View:
    """Buffer of several products' rows, side by side in columns."""
    y, start = View.room(low.most(low.node(ops[0].out)), sum(op.out.width for op in ops)), 0
    for op in ops:
        low.node(op.out).f32 = View(y.buffer, y.ld, 4 * start)
        start += op.out.width
    return y
