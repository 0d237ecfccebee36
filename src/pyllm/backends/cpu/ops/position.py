"""Factors by position."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.backends.cpu.arguments import position as arguments
from pyllm.backends.cpu.kernels import kernel
from pyllm.backends.cpu.rules import emit
from pyllm.program.ops.position import PositionScale

if TYPE_CHECKING:
    from pyllm.backends.cpu.lowering import Lowering
    from pyllm.backends.cpu.values import Node


@emit(PositionScale)
def position_scale(low: Lowering, node: Node, op: PositionScale) -> None:
    low.table.add(
        kernel("position", "scale"),
        arguments.Scale(
            x=low.f32(op.x), y=low.new_f32(node), columns=op.out.width, factors=low.weights.constant(op.factors),
            n_factors=len(op.factors), length=op.length, offset=op.offset,
        ),
        label="scale by position",
    )  # fmt: skip
