"""Gated activations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.backends.cuda import elementwise
from pyllm.backends.cuda.rules import emit
from pyllm.program.ops.gate import Activation, GatedActivation

if TYPE_CHECKING:
    from pyllm.backends.cuda.lowering import Lowering, Node


@emit(GatedActivation)
def gated_activation(low: Lowering, node: Node, op: GatedActivation) -> None:
    y = low.new_forms(node, low.wants(node))
    gate, up = low.f32(op.gate), low.f32(op.up)
    spread, limit = op.columns_per_gate, op.limit
    low.add(node, elementwise.gated(low.arrays, node.count, op.act, gate, up, y, op.out.width, spread, limit))


@emit(Activation)
def activation(low: Lowering, node: Node, op: Activation) -> None:
    y, x = low.new_forms(node, low.wants(node)), low.f32(op.x)
    low.add(node, elementwise.activation(low.arrays, node.count, op.act, x, y, op.out.width, op.parameters))
