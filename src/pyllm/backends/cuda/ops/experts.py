"""A mixture of experts in a program's launches: route, products by slots, gate, weighted sum."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.backends.cuda import elementwise, linear
from pyllm.backends.cuda import experts as launches
from pyllm.backends.cuda.experts import Routing
from pyllm.backends.cuda.launch import GROUP, Q8, Forms, Half, View
from pyllm.backends.cuda.rules import emit
from pyllm.backends.plan.groups import Product
from pyllm.backends.plan.memory import Buffer
from pyllm.program.ops.experts import MixtureOfExperts

if TYPE_CHECKING:
    from pyllm.backends.cuda.lowering import Lowering, Node


@emit(MixtureOfExperts)
def experts(low: Lowering, node: Node, op: MixtureOfExperts) -> None:
    """Emit a mixture; `node` is its value, or that of its sum with a residual."""
    group, logits = low.groups.of(node.value), low.f32(op.router)
    residual = low.f32(group.residual) if isinstance(group, Product) and group.residual else None
    x = low.forms(op.x, low.x_forms(low.node(op.x), op.readers))
    bias = low.weights.vector([(op.choice_bias, op.n_experts)]) if op.choice_bias else None
    routing = Routing.room(op, node.count, low.most(node))
    low.add(node, launches.route(low.arrays, logits, bias, routing))
    active = _activate(low, node, routing, x)
    down = _product(low, node, routing, active, [op.down], [op.down_bias], op.down_scale)
    low.add(node, launches.combine(low.arrays, down, routing, low.new_f32(node), residual))


def _activate(low: Lowering, node: Node, r: Routing, x: Forms) -> Forms:
    """The input of `down`: act(gate) * up, or act(up)."""
    op, gate = r.op, None
    if _one_product(low, op):
        gate = _product(low, node, r, x, op.readers, [op.gate_bias, op.up_bias], None)
        up = View(gate.buffer, gate.ld, gate.offset + 4 * op.n_ff)
        products = [(gate, 2 * op.n_ff)]
    else:
        if op.gate is not None:
            gate = _product(low, node, r, x, [op.gate], [op.gate_bias], op.gate_scale)
        up = _product(low, node, r, x, [op.up], [op.up_bias], op.up_scale)
        products = [(y, op.n_ff) for y in (gate, up) if y]
    if op.weighs_input:
        low.add(node, [launches.weigh(y, r, width) for y, width in products])
    active = _active(low, node, r)
    if gate is None:
        low.add(node, elementwise.activation(low.arrays, r.slot_count, op.act, up, active, op.n_ff, ()))
    else:
        low.add(node, elementwise.gated(low.arrays, r.slot_count, op.act, gate, up, active, op.n_ff, limit=op.limit))
    return active


def _one_product(low: Lowering, op: MixtureOfExperts) -> bool:
    """Whether an expert's gate and up are one matrix."""
    alike = op.gate is not None and low.weights[op.gate].format == low.weights[op.up].format
    return alike and op.n_ff % GROUP == 0 and not (op.gate_scale or op.up_scale)


def _product(
    low: Lowering, node: Node, r: Routing, x: Forms, names: list[str], biases: list[str | None], scale: str | None
) -> View:
    """y [slots, rows of the matrices], by each slot's expert. `x` has rows of tokens, or of slots."""
    plan, weight = low.weights.matrix(names)
    widths = [low.weights[name].shape[-2] for name in names]
    n = r.op.n_matrices
    bias: Buffer | None = None
    if any(biases):
        bias = low.weights.vector(list(zip(biases, widths, strict=True)), n)
    factors = low.weights.vector([(scale, 1)], n) if scale else None
    y = View.room(r.slot_count.most(low.options), sum(widths))
    low.add(
        node,
        linear.product(low.arrays, r.slot_count, plan, weight, x, y, low.parts, bias=bias, scale=factors, routing=r),
    )
    return y


def _active(low: Lowering, node: Node, r: Routing) -> Forms:
    """Buffers for the input of `down`, in its dtypes."""
    wanted = low.x_forms(node, [r.op.down])
    n, few, width = r.slot_count.most(low.options), r.slot_count.few, r.op.n_ff
    return Forms(
        View.room(n, width) if "f32" in wanted else None,
        Q8.room(min(n, few), width) if "q8" in wanted else None,
        Half.room(n, width) if "half" in wanted and n > few else None,
        few,
    )
