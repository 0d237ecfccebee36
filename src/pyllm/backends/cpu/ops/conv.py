"""Convolution over the last tokens of a sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.backends.cpu.arguments import conv as arguments
from pyllm.backends.cpu.kernels import kernel
from pyllm.backends.cpu.rules import emit
from pyllm.backends.cpu.table import View
from pyllm.program.ops.conv import ShortConv

if TYPE_CHECKING:
    from pyllm.backends.cpu.lowering import Lowering
    from pyllm.backends.cpu.values import Node


@emit(ShortConv)
def short_conv(low: Lowering, node: Node, op: ShortConv) -> None:
    x, y = low.f32(op.x), low.new_f32(node)
    weight, step = low.weights.columns(op.weight)
    bias = low.weights.vector([(op.bias, op.out.width)])[0] if op.bias else None
    low.table.add(
        kernel("conv", "short_conv", taps=low.weights[op.weight].shape[1]),
        arguments.ShortConv(
            x=x, y=y, weight=View(weight, step), bias=bias, columns=op.out.width,
            states=low.states(op),
        ),
        label="convolution",
    )  # fmt: skip
