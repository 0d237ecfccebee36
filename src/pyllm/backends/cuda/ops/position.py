"""Factors by position."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.backends.cuda.launch import TOKENS, Launch, fill, struct
from pyllm.backends.cuda.rules import emit
from pyllm.program.ops.position import PositionScale

if TYPE_CHECKING:
    from pyllm.backends.cuda.lowering import Lowering, Node

_THREADS = 256
_SCALE = struct(
    x="ptr", y="ptr", factors="ptr", positions="ptr", count="ptr",
    ldx="int", ldy="int", width="int", n_factors="int", length="int", offset="int",
)  # fmt: skip


@emit(PositionScale)
def position_scale(low: Lowering, node: Node, op: PositionScale) -> None:
    x, y, width, a = low.f32(op.x), low.new_f32(node), op.out.width, low.arrays
    factors = low.weights.constant(op.factors)
    launch = Launch(
        "position.cu",
        "scale",
        lambda shape: (-(-width // _THREADS), shape.n_tokens, 1),
        _THREADS,
        lambda shape: fill(
            _SCALE, x=x, y=y, factors=factors, positions=a.positions, count=a.count(TOKENS), ldx=x.ld, ldy=y.ld,
            width=width, n_factors=len(op.factors), length=op.length, offset=op.offset,
        ),
        "scale by position",
        reads=(x.buffer,),
        writes=(y.buffer,),
    )  # fmt: skip
    low.add(node, launch)
