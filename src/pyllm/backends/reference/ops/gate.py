"""Activations, and what they gate."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from pyllm.backends.reference.functions import sigmoid
from pyllm.backends.reference.rules import F32, State, rule
from pyllm.program.ops.gate import GatedActivation

if TYPE_CHECKING:
    from pyllm.backends.base import Batch
    from pyllm.backends.reference.backend import ReferenceExecutable


def gated_activation(gate: F32, up: F32, act: str = "silu") -> F32:
    """gate, up [tokens, width] → [tokens, width]."""
    if act == "swiglu_oai":
        g, u = np.minimum(gate, 7), np.clip(up, -7, 7)
        return g * sigmoid(1.702 * g) * (u + 1)
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
}


@rule(GatedActivation)
def _gated_activation(exe: ReferenceExecutable, op: GatedActivation, batch: Batch, state: State) -> F32:
    return gated_activation(state[op.gate.id], state[op.up.id], op.act)
