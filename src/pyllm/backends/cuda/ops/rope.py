"""Rotary positions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.backends.cuda import kv
from pyllm.backends.cuda.rules import emit
from pyllm.program.ops.rope import Rope

if TYPE_CHECKING:
    from pyllm.backends.cuda.lowering import Lowering, Node


@emit(Rope)
def rope(low: Lowering, node: Node, op: Rope) -> None:
    x, y = low.f32(op.x), low.new_f32(node)
    low.add(node, kv.rope(low.arrays, op, x, y, low.weights.constant(op.inv_freq)))
