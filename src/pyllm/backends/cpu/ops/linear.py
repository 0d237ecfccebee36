"""Matrix products in a table: merged where they share input and format, with the sum or the activation after them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyllm.backends.cpu.layouts import GATED_SCRATCH, WIDE_SCRATCH
from pyllm.backends.cpu.rules import emit
from pyllm.backends.cpu.table import Entry, View
from pyllm.program.ops.elementwise import Add
from pyllm.program.ops.experts import MixtureOfExperts
from pyllm.program.ops.linear import Linear

if TYPE_CHECKING:
    from pyllm.backends.cpu.lowering import Lowering
    from pyllm.backends.cpu.values import Node


@dataclass(frozen=True)
class Gated:
    """What a product of gates and their counterparts goes on to, and where its records go."""

    act: str
    q8: View


@emit(Linear)
def linear(low: Lowering, node: Node, op: Linear, residual: View | None = None, gated: Gated | None = None) -> None:
    """`node` is the value that is written: the product's, or of the sum with `residual`.

    With `gated`, the product's wide tokens go straight on to that; `op` and its sibling are its gate and up.
    """
    nodes, ops = [node], [op]
    if residual is None:
        nodes, ops = siblings(low, node, op)
    plan, w = low.weights.matrix([o.weight for o in ops])
    x = low.form(op.x, plan.x_form)
    low.observe(op.x, [o.weight for o in ops])
    bias, n_rows = None, low.most_rows(node)
    if any(o.bias for o in ops):
        bias, _ = low.weights.vector([(o.bias, o.out.width) for o in ops])
    if len(ops) == 1:
        y = low.new_f32(node)
    else:
        y, start = low.rows_f32(n_rows, sum(o.out.width for o in ops)), 0
        for n, o in zip(nodes, ops, strict=True):
            n.f32 = View(y.buffer, y.ld, 4 * start)
            start += o.out.width
    rows, wide = low.range(node), None
    wide_kernel = plan.gated_kernel(gated.act) if gated else plan.wide_kernel
    if wide_kernel and low.may_be_wide(low.node(op.x)):
        rows, out = low.narrow(node), gated.q8 if gated else y
        low.table.need_scratch(GATED_SCRATCH if gated else WIDE_SCRATCH)
        wide = Entry(
            wide_kernel,
            plan.wide_args(
                w=w, x=x, y=out, bias=bias, residual=residual, rows=low.wide(node), scratch=low.table.scratch
            ),
            label=f"wide {plan.format} {gated.act if gated else ''}".rstrip(),
        )  # fmt: skip
    low.table.add(
        plan.kernel,
        plan.args(w=w, x=x, y=y, bias=bias, residual=residual, ranges=rows),
        wide=wide,
        label=f"linear {plan.format} {plan.rows}x{plan.columns}",
    )  # fmt: skip


def siblings(low: Lowering, node: Node, op: Linear) -> tuple[list[Node], list[Linear]]:
    """Products of the same input and format that can be one, in the program's order; `op` among them."""
    tensor = low.weights[op.weight]
    nodes: list[Node] = []
    ops: list[Linear] = []
    for o in low.node(op.x).readers:
        if not isinstance(o, Linear) or o in ops:
            continue
        n, t = low.node(o.out), low.weights[o.weight]
        free = n.f32 is None and o.out.id not in low.outputs and o.out.width % 16 == 0
        if o is op or (free and t.format == tensor.format and not _joins_sum(low, n)):
            nodes.append(n)
            ops.append(o)
    mergeable = op.out.id not in low.outputs and op.out.width % 16 == 0
    return (nodes, ops) if mergeable else ([node], [op])


def _joins_sum(low: Lowering, node: Node) -> bool:
    reader = node.only_reader
    return isinstance(reader, Add) and product_of_sum(low, low.node(reader.out)) is node


def product_of_sum(low: Lowering, node: Node) -> Node | None:
    """The product that can add the rest of this sum itself: not computed yet and read by nothing else."""
    op = node.op
    assert isinstance(op, Add)
    for v in (op.b, op.a):
        n = low.node(v)
        if isinstance(n.op, (Linear, MixtureOfExperts)) and n.f32 is None and n.only_reader is op and op.a != op.b:
            return n
    return None
