"""Scalar products."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pyllm.backends.cuda.launch import Launch, StepShape, fill, struct
from pyllm.backends.cuda.rules import emit
from pyllm.program.ops.dot import Dot

if TYPE_CHECKING:
    from pyllm.backends.cuda.lowering import Lowering, Node

_WARPS = 4
_ARGS = struct(count="ptr", x="ptr", z="ptr", out="ptr", x_ld="int", z_ld="int", out_ld="int", n_groups="int")


@emit(Dot)
def dot(low: Lowering, node: Node, op: Dot) -> None:
    x, z, out, n_groups = low.f32(op.a), low.f32(op.b), low.new_f32(node), op.out.width

    def args(shape: StepShape) -> NDArray[np.void]:
        return fill(
            _ARGS, count=low.arrays.count(node.count), x=x, z=z, out=out, x_ld=x.ld, z_ld=z.ld, out_ld=out.ld,
            n_groups=n_groups,
        )  # fmt: skip

    launch = Launch(
        "dot.cu",
        "dot",
        lambda shape: (node.count.of(shape), -(-n_groups // _WARPS), 1),
        32 * _WARPS,
        args,
        "dot",
        defines={"GROUP": op.group, "WARPS": _WARPS},
        reads=(x.buffer, z.buffer),
        writes=(out.buffer,),
    )
    low.add(node, launch)
