"""Matrix products."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx

from pyllm.backends.mlx.rules import rule
from pyllm.program.ops.linear import Linear

if TYPE_CHECKING:
    from pyllm.backends.mlx.lowering import Step


@rule(Linear)
def _linear(s: Step, op: Linear) -> mx.array:
    out = s.lowering.matrices[op.weight].product(s[op.x], op.x.id in s.lowering.bounded)
    bias = s.vector(op.bias)
    return out if bias is None else out + bias
