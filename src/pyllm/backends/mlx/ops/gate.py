"""Activations, and what they gate."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import mlx.core as mx

from pyllm.backends.mlx.rules import rule
from pyllm.program.ops.gate import GatedActivation

if TYPE_CHECKING:
    from pyllm.backends.mlx.lowering import Step


def gated_activation(gate: mx.array, up: mx.array, act: str) -> mx.array:
    """Any shape."""
    if act == "swiglu_oai":
        g, u = mx.minimum(gate, 7), mx.clip(up, -7, 7)
        return g * mx.sigmoid(1.702 * g) * (u + 1)
    return ACTIVATIONS[act](gate) * up


ACTIVATIONS: dict[str, Callable[[mx.array], mx.array]] = {
    "silu": lambda x: x * mx.sigmoid(x),
    "gelu": lambda x: 0.5 * x * (1 + mx.tanh(0.7978845608028654 * x * (1 + 0.044715 * x * x))),
    "gelu_erf": lambda x: 0.5 * x * (1 + mx.erf(x * 0.7071067811865476)),
    "relu": lambda x: mx.maximum(x, 0),
}


@rule(GatedActivation)
def _gated_activation(s: Step, op: GatedActivation) -> mx.array:
    return gated_activation(s[op.gate], s[op.up], op.act)
