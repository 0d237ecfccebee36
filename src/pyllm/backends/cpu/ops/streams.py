"""Sums of streams."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.backends.cpu.arguments import streams as arguments
from pyllm.backends.cpu.kernels import kernel
from pyllm.backends.cpu.rules import emit
from pyllm.program.ops.streams import StreamMix

if TYPE_CHECKING:
    from pyllm.backends.cpu.lowering import Lowering
    from pyllm.backends.cpu.values import Node


@emit(StreamMix)
def stream_mix(low: Lowering, node: Node, op: StreamMix) -> None:
    n, m = op.n_in, op.n_out
    x, x2, coefs = low.f32(op.x), low.f32(op.y) if op.y else None, low.f32(op.coefs) if op.coefs else None
    weight = low.weights.vector([(op.weight, m * n)])[0] if op.weight else None
    low.table.need_scratch(4 * m * n)
    n_first = op.x.width // op.width
    low.table.add(
        kernel("streams", "mix"),
        arguments.Mix(
            x=x, x2=x2, y=low.new_f32(node), coefs=coefs, weight=weight, n_first=n_first, n_second=n - n_first,
            n_out=m, width=op.width, rows=low.range(node), scratch=low.table.scratch,
        ),
        label="mix streams",
    )  # fmt: skip
