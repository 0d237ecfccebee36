"""Matrix products, by numpy's matmul."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.backends.reference.rules import F32, State, rule
from pyllm.program.ops.linear import Linear

if TYPE_CHECKING:
    from pyllm.backends.base import Batch
    from pyllm.backends.reference.backend import ReferenceExecutable


@rule(Linear)
def _linear(exe: ReferenceExecutable, op: Linear, batch: Batch, state: State) -> F32:
    exe.observe(op.weight, state[op.x.id])
    out = exe.matmul(state[op.x.id], exe.sequences(op.x, batch), op.weight, 0, op.out.width)
    bias = exe.weights.whole(op.bias)
    return out if bias is None else out + bias
