"""Activations, and what they gate."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from pyllm.backends.reference.functions import sigmoid
from pyllm.backends.reference.rules import F32, State, rule
from pyllm.program.ops.gate import LIMITED, Activation, GatedActivation

if TYPE_CHECKING:
    from pyllm.backends.base import Batch
    from pyllm.backends.reference.backend import ReferenceExecutable


def gated_activation(gate: F32, up: F32, act: str = "silu", limit: float = 0.0) -> F32:
    """up [tokens, width], gate the same or [tokens, a divisor of width] → [tokens, width]."""
    if gate.shape != up.shape:
        gate = np.repeat(gate, up.shape[1] // gate.shape[1], axis=1)
    if act == "swiglu_oai":
        g, u = np.minimum(gate, 7), np.clip(up, -7, 7)
        return g * sigmoid(1.702 * g) * (u + 1)
    if act in LIMITED:
        u = np.clip(up, -limit, limit)
        if act == "swiglu_clamp":
            return ACTIVATIONS["silu"](np.minimum(gate, limit)) * u
        return np.minimum(ACTIVATIONS["silu"](gate), limit) * u
    return ACTIVATIONS[act](gate) * up


def _gelu(x: F32) -> F32:
    inner = 0.7978845608028654 * x * (1 + 0.044715 * x * x)
    return (0.5 * x * (1 + np.tanh(inner))).astype(np.float32, copy=False)


def _gelu_erf(x: F32) -> F32:
    from math import erf

    values = np.fromiter((erf(v) for v in x.ravel() / np.sqrt(2.0)), np.float32, x.size).reshape(x.shape)
    return 0.5 * x * (1 + values)


ACTIVATIONS: dict[str, Callable[[F32], F32]] = {
    "silu": lambda x: x * sigmoid(x),
    "gelu": _gelu,
    "gelu_erf": _gelu_erf,
    "relu": lambda x: np.maximum(x, 0),
    "relu2": lambda x: np.square(np.maximum(x, 0)),
    "sigmoid": sigmoid,
    "softplus": lambda x: np.logaddexp(x, np.float32(0)),
    "tanh": np.tanh,
    "exp": np.exp,
    "identity": lambda x: x,
}


@rule(GatedActivation)
def _gated_activation(exe: ReferenceExecutable, op: GatedActivation, batch: Batch, state: State) -> F32:
    return gated_activation(state[op.gate.id], state[op.up.id], op.act, op.limit)


def xielu(x: F32, alpha_n: float, alpha_p: float, beta: float, eps: float) -> F32:
    """Any shape; the formula is in `Activation`."""
    negative = (np.expm1(np.minimum(x, np.float32(eps))) - x) * np.float32(alpha_n)
    return np.where(x > 0, np.float32(alpha_p) * x * x, negative) + np.float32(beta) * x


@rule(Activation)
def _activation(exe: ReferenceExecutable, op: Activation, batch: Batch, state: State) -> F32:
    x = state[op.x.id]
    return xielu(x, *op.parameters) if op.act == "xielu" else ACTIVATIONS[op.act](x)
