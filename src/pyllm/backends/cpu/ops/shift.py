"""The tokens before: a convolution over two tokens, the same for all columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.backends.cpu.arguments.conv import ShortConv
from pyllm.backends.cpu.kernels import kernel
from pyllm.backends.cpu.rules import emit
from pyllm.backends.cpu.table import View, round_up
from pyllm.program.ops.shift import TokenShift

if TYPE_CHECKING:
    from pyllm.backends.cpu.lowering import Lowering
    from pyllm.backends.cpu.values import Node


@emit(TokenShift)
def token_shift(low: Lowering, node: Node, op: TokenShift) -> None:
    x, y, width = low.f32(op.x), low.new_f32(node), round_up(op.out.width, 16)
    weight = View(low.weights.constant([1.0] * width + [-1.0] * width), 4 * width)
    low.table.add(
        kernel("conv", "short_conv", taps=2),
        ShortConv(x=x, y=y, weight=weight, columns=op.out.width, states=low.states(op)),
        label="token shift",
    )
