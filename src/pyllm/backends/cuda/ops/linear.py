"""Matrix products in a program's launches: merged where they share input and format, with what follows them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.backends.cuda import linear as plans
from pyllm.backends.cuda.launch import GROUP, View
from pyllm.backends.cuda.rules import emit
from pyllm.program.ops.elementwise import Add
from pyllm.program.ops.experts import MixtureOfExperts
from pyllm.program.ops.linear import Linear

if TYPE_CHECKING:
    from pyllm.backends.cuda.lowering import Lowering, Node


@emit(Linear)
def linear(low: Lowering, node: Node, op: Linear, residual: View | None = None) -> None:
    """`node` is the value that is written: the product's, or of the sum with `residual`."""
    nodes, ops = ([node], [op]) if residual is not None else _siblings(low, node, op)
    names = [o.weight for o in ops]
    plan, weight = low.weights.matrix(names)
    x = low.forms(op.x, low.x_forms(node, names))
    bias = low.weights.vector([(o.bias, o.out.width) for o in ops]) if any(o.bias for o in ops) else None
    if len(ops) == 1:
        y = low.new_f32(node)
    else:
        y, start = View.room(low.most(node), sum(o.out.width for o in ops)), 0
        for n, o in zip(nodes, ops, strict=True):
            n.f32 = View(y.buffer, y.ld, 4 * start)
            start += o.out.width
    low.add(node, plans.product(low.arrays, node.count, plan, weight, x, y, low.parts, bias=bias, residual=residual))


def _siblings(low: Lowering, node: Node, op: Linear) -> tuple[list[Node], list[Linear]]:
    """Products of the same input and format that can be one, in the program's order; `op` among them."""
    if not _mergeable(low, node):
        return [node], [op]
    found = [op]
    for o in low.node(op.x).readers:
        if isinstance(o, Linear) and o is not op:
            n = low.node(o.out)
            alike = low.weights[o.weight].format == low.weights[op.weight].format
            if alike and not n.computed and o.weight != op.weight and _mergeable(low, n) and not _joins_sum(low, n):
                found.append(o)
    ops = [o for o in low.program.ops if any(o is f for f in found)]
    return [low.node(o.out) for o in ops], [o for o in ops if isinstance(o, Linear)]


def _mergeable(low: Lowering, node: Node) -> bool:
    return not low.is_sent(node) and node.value.width % GROUP == 0


def _joins_sum(low: Lowering, node: Node) -> bool:
    reader = node.only_reader
    return isinstance(reader, Add) and product_of_sum(low, low.node(reader.out)) is node


def product_of_sum(low: Lowering, node: Node) -> Node | None:
    """The product that can add the rest of this sum itself: not computed yet and read by nothing else."""
    op = node.op
    assert isinstance(op, Add)
    for v in (op.b, op.a):
        n = low.node(v)
        fits = isinstance(n.op, (Linear, MixtureOfExperts)) and not n.computed and not low.is_sent(n)
        if fits and n.only_reader is op and op.a != op.b:
            return n
    return None
