"""Matrix products, by numpy's matmul."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyllm.backends.reference.rules import F32, State, rule
from pyllm.program.ops.linear import HeadLinear, Linear

if TYPE_CHECKING:
    from pyllm.backends.base import Batch
    from pyllm.backends.reference.backend import ReferenceExecutable


@rule(Linear)
def _linear(exe: ReferenceExecutable, op: Linear, batch: Batch, state: State) -> F32:
    exe.observe(op.weight, state[op.x.id])
    out = exe.matmul(state[op.x.id], exe.sequences(op.x, batch), op.weight, 0, op.out.width)
    bias = exe.weights.whole(op.bias)
    return out if bias is None else out + bias


@rule(HeadLinear)
def _head_linear(exe: ReferenceExecutable, op: HeadLinear, batch: Batch, state: State) -> F32:
    x, seqs, n = state[op.x.id], exe.sequences(op.x, batch), op.out.width // op.n_heads
    out = []
    for h, columns in enumerate(np.split(x, op.n_heads, axis=1)):
        exe.observe(op.weight, columns, h, op.n_heads)
        out.append(exe.matmul(columns, seqs, op.weight, h * n, (h + 1) * n))
    return np.concatenate(out, axis=1)
