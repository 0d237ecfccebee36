"""Activations, and what they gate."""

from __future__ import annotations

from dataclasses import dataclass

from pyllm.program.op import Op, Shapes, known
from pyllm.program.values import Value

ACTIVATIONS = ("silu", "gelu", "gelu_erf", "relu", "swiglu_oai")


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedActivation(Op):
    """out = act(gate) * up. `act`: "silu", "gelu" (tanh form, as ggml's), "gelu_erf", "relu", or "swiglu_oai".

    swiglu_oai (gpt-oss): g = min(gate, 7), u = clip(up, -7, 7), out = g * sigmoid(1.702 g) * (u + 1).
    """

    gate: Value
    up: Value
    act: str = "silu"

    def infer(self, shapes: Shapes) -> int:
        known(self.act, ACTIVATIONS)
        return shapes.same_width("gated", self.gate, self.up)
