"""Convolution over the last tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.backends.cuda.recurrent import Scan, by_number
from pyllm.backends.cuda.rules import emit
from pyllm.program.ops.conv import ShortConv

if TYPE_CHECKING:
    from pyllm.backends.cuda.lowering import Lowering, Node


@emit(ShortConv)
def short_conv(low: Lowering, node: Node, op: ShortConv) -> None:
    width, size = low.weights[op.weight].shape
    weights = {
        "weight": low.weights.vector([(op.weight, width * size)]),
        "bias": low.weights.vector([(op.bias, width)]) if op.bias else None,
    }
    scan = Scan("conv.cu", "short_conv", "convolution", {"x": op.x}, weights, defines={"SIZE": size, "WIDTH": width})
    by_number(low, node, op, scan)
