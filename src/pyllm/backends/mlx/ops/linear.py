"""Matrix products."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx

from pyllm.backends.mlx.rules import rule
from pyllm.program.ops.linear import HeadLinear, Linear

if TYPE_CHECKING:
    from pyllm.backends.mlx.lowering import Step


@rule(Linear)
def _linear(s: Step, op: Linear) -> mx.array:
    out = s.lowering.matrices[op.weight].product(s[op.x], op.x.id in s.lowering.bounded)
    bias = s.vector(op.bias)
    return out if bias is None else out + bias


@rule(HeadLinear)
def _head_linear(s: Step, op: HeadLinear) -> mx.array:
    """The matrices are kept as float32."""
    weight = s.lowering.vectors[op.weight].reshape(op.n_heads, -1, op.x.width // op.n_heads)
    heads = s[op.x].reshape(-1, op.n_heads, weight.shape[2]).swapaxes(0, 1)  # [heads, tokens, columns]
    return (heads @ weight.swapaxes(1, 2)).swapaxes(0, 1).reshape(-1, op.out.width)
