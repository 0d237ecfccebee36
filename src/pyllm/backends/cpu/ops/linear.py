"""Matrix products in a table: those of one input side by side, fused with a residual sum or an activation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.backends.cpu.layouts import GATED_SCRATCH, PANEL, WIDE_SCRATCH
from pyllm.backends.cpu.rules import emit
from pyllm.backends.cpu.table import Entry, View
from pyllm.backends.plan.groups import Product
from pyllm.errors import BackendError
from pyllm.program.ops.linear import HeadLinear, Linear
from pyllm.records import dataclass

if TYPE_CHECKING:
    from pyllm.backends.cpu.lowering import Lowering
    from pyllm.backends.cpu.values import Node


@dataclass(frozen=True)
class Gate:
    """Fused gate and up projection: the activation, and the buffer of its quantized result."""

    act: str
    q8: View


@emit(Linear)
def linear(low: Lowering, node: Node, op: Linear) -> None:
    group = low.groups.of(node.value)
    assert isinstance(group, Product)
    products(low, group)


def products(low: Lowering, group: Product, gate: Gate | None = None) -> None:
    """Add the products of a group, with their residual. With `gate`, the prefill path fuses the activation."""
    ops = [op for op in group.products if isinstance(op, Linear)]
    x_node, node = low.node(ops[0].x), low.node(group.out)
    plan, w = low.weights.matrix([o.weight for o in ops])
    residual = low.f32(group.residual) if group.residual else None
    x = low.form(ops[0].x, plan.x_form)
    low.observe(ops[0].x, [o.weight for o in ops])
    bias = low.weights.vector([(o.bias, o.out.width) for o in ops])[0] if any(o.bias for o in ops) else None
    y = low.new_f32(node) if len(ops) == 1 else _side_by_side(low, ops)
    rows, wide = low.range(node), None
    wide_kernel = plan.gated_kernel(gate.act) if gate else plan.wide_kernel
    if wide_kernel and low.may_be_wide(x_node):
        rows = low.narrow(node)
        low.table.need_scratch(GATED_SCRATCH if gate else WIDE_SCRATCH)
        wide = Entry(
            wide_kernel,
            plan.wide_args(
                w=w, x=x, y=gate.q8 if gate else y, bias=bias, residual=residual, rows=low.wide(node),
                scratch=low.table.scratch,
            ),
            label=f"wide {plan.format} {gate.act if gate else ''}".rstrip(),
        )  # fmt: skip
    low.table.add(
        plan.kernel,
        plan.args(w=w, x=x, y=y, bias=bias, residual=residual, ranges=rows),
        wide=wide,
        label=f"linear {plan.format} {plan.rows}x{plan.columns}",
    )


@emit(HeadLinear)
def head_linear(low: Lowering, node: Node, op: HeadLinear) -> None:
    """Heads are groups with the same rows, and columns of their own; the input is float32."""
    plan, w = low.weights.matrix([op.weight], floats=True)
    if op.n_heads > 1 and plan.rows % PANEL:
        raise BackendError(f"the CPU backend needs heads of a multiple of {PANEL} columns, not {plan.rows}")
    x, y, rows = low.f32(op.x), low.new_f32(node), low.range(node)
    if low.statistics:
        low.statistics.observe(
            low.table, None, [op.weight], x, plan.columns, rows, op.n_heads, x_stride=4 * plan.columns, range_stride=0
        )
    low.table.add(
        plan.kernel,
        plan.args(
            w=w, x=x, y=y, ranges=rows, n_groups=op.n_heads, x_stride=4 * plan.columns, y_stride=4 * plan.rows,
            range_stride=0,
        ),
        label=f"heads {plan.format} {plan.rows}x{plan.columns}",
    )  # fmt: skip


def _side_by_side(low: Lowering, ops: list[Linear]) -> View:
    """Buffer of several products' rows, side by side in columns."""
    y, start = low.rows_f32(low.most_rows(low.node(ops[0].out)), sum(op.out.width for op in ops)), 0
    for op in ops:
        low.node(op.out).f32 = View(y.buffer, y.ld, 4 * start)
        start += op.out.width
    return y
