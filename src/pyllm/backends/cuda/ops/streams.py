"""Sums of streams."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pyllm.backends.cuda.launch import Launch, StepShape, fill, struct
from pyllm.backends.cuda.rules import emit
from pyllm.program.ops.streams import StreamMix

if TYPE_CHECKING:
    from pyllm.backends.cuda.lowering import Lowering, Node

_THREADS = 256
_MIX = struct(
    x="ptr", x2="ptr", coefs="ptr", weight="ptr", out="ptr", count="ptr",
    ldx="int", ldx2="int", ldc="int", ldo="int", n_first="int", n_second="int", width="int",
)  # fmt: skip


@emit(StreamMix)
def stream_mix(low: Lowering, node: Node, op: StreamMix) -> None:
    x, x2, coefs = low.f32(op.x), low.f32(op.y) if op.y else None, low.f32(op.coefs) if op.coefs else None
    weight = low.weights.vector([(op.weight, op.n_in * op.n_out)]) if op.weight else None
    out, n_first = low.new_f32(node), op.x.width // op.width

    def args(shape: StepShape) -> NDArray[np.void]:
        return fill(
            _MIX, x=x, x2=x2, coefs=coefs, weight=weight, out=out, count=low.arrays.count(node.count), ldx=x.ld,
            ldx2=x2.ld if x2 else 0, ldc=coefs.ld if coefs else 0, ldo=out.ld, n_first=n_first,
            n_second=op.n_in - n_first, width=op.width,
        )  # fmt: skip

    launch = Launch(
        "streams.cu",
        "mix",
        lambda shape: (node.count.of(shape), -(-op.width // _THREADS), op.n_out),
        _THREADS,
        args,
        "mix streams",
        reads=tuple(view.buffer for view in (x, x2, coefs) if view),
        writes=(out.buffer,),
    )
    low.add(node, launch)
