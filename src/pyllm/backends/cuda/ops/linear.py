"""Matrix products in a program's launches: those of one input side by side, fused with a residual sum."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.backends.cuda import linear as plans
from pyllm.backends.cuda.launch import View
from pyllm.backends.cuda.rules import emit
from pyllm.backends.plan.groups import Product
from pyllm.program.ops.linear import Linear

if TYPE_CHECKING:
    from pyllm.backends.cuda.lowering import Lowering, Node


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


def _side_by_side(low: Lowering, ops: list[Linear]) -> View:
    """Buffer of several products' rows, side by side in columns."""
    y, start = View.room(low.most(low.node(ops[0].out)), sum(op.out.width for op in ops)), 0
    for op in ops:
        low.node(op.out).f32 = View(y.buffer, y.ld, 4 * start)
        start += op.out.width
    return y
