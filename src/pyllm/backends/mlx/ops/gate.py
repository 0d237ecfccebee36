"""Activations, and what they gate."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import mlx.core as mx

from pyllm.backends.mlx.rules import rule
from pyllm.program.ops.gate import LIMITED, Activation, GatedActivation

if TYPE_CHECKING:
    from pyllm.backends.mlx.lowering import Step


def gated_activation(gate: mx.array, up: mx.array, act: str, limit: float = 0.0) -> mx.array:
    """up [tokens, width], gate the same or [tokens, a divisor of width] → [tokens, width]; or both of any shape."""
    if gate.shape != up.shape:
        gate = mx.repeat(gate, up.shape[1] // gate.shape[1], axis=1)
    if act == "swiglu_oai":
        g, u = mx.minimum(gate, 7), mx.clip(up, -7, 7)
        return g * mx.sigmoid(1.702 * g) * (u + 1)
    if act in LIMITED:
        u = mx.clip(up, -limit, limit)
        if act == "swiglu_clamp":
            return ACTIVATIONS["silu"](mx.minimum(gate, limit)) * u
        return mx.minimum(ACTIVATIONS["silu"](gate), limit) * u
    return ACTIVATIONS[act](gate) * up


ACTIVATIONS: dict[str, Callable[[mx.array], mx.array]] = {
    "silu": lambda x: x * mx.sigmoid(x),
    "gelu": lambda x: 0.5 * x * (1 + mx.tanh(0.7978845608028654 * x * (1 + 0.044715 * x * x))),
    "gelu_erf": lambda x: 0.5 * x * (1 + mx.erf(x * 0.7071067811865476)),
    "relu": lambda x: mx.maximum(x, 0),
    "relu2": lambda x: mx.square(mx.maximum(x, 0)),
    "sigmoid": mx.sigmoid,
    "softplus": lambda x: mx.logaddexp(x, mx.array(0.0)),
    "tanh": mx.tanh,
    "exp": mx.exp,
    "identity": lambda x: x,
}


@rule(GatedActivation)
def _gated_activation(s: Step, op: GatedActivation) -> mx.array:
    return gated_activation(s[op.gate], s[op.up], op.act, op.limit)


@rule(Activation)
def _activation(s: Step, op: Activation) -> mx.array:
    x = s[op.x]
    if op.act != "xielu":
        return ACTIVATIONS[op.act](x)
    alpha_n, alpha_p, beta, eps = op.parameters
    return mx.where(x > 0, alpha_p * x * x, alpha_n * (mx.expm1(mx.minimum(x, eps)) - x)) + beta * x
