"""Activations, and what they gate."""

from __future__ import annotations

from pyllm.errors import ModelError
from pyllm.program.op import Op, Shapes, known
from pyllm.program.values import Value
from pyllm.records import dataclass

ACTIVATIONS = (
    "silu", "gelu", "gelu_erf", "relu", "swiglu_oai", "relu2", "sigmoid", "softplus", "tanh", "exp", "identity",
    "swiglu_clamp", "swiglu_clamp_act",
)  # fmt: skip
"""gelu is the tanh form, as ggml's; relu2 is max(x, 0)^2; softplus is log(1 + exp(x)); identity makes a gated
activation the product of two values."""

LIMITED = ("swiglu_clamp", "swiglu_clamp_act")
"""Activations with a limit."""
UNGATED = tuple(act for act in ACTIVATIONS if act not in ("swiglu_oai", "identity", *LIMITED))
UNARY = (*UNGATED, "xielu")


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedActivation(Op):
    """out = act(gate) * up. `act`: one of ACTIVATIONS.

    A gate may be narrower than what it gates: one number for each head, or one for each token. Each then holds for
    up.width / gate.width consecutive columns.
    swiglu_oai (gpt-oss): g = min(gate, 7), u = clip(up, -7, 7), out = g * sigmoid(1.702 g) * (u + 1).
    swiglu_clamp, swiglu_clamp_act: silu(min(gate, limit)) * u, min(silu(gate), limit) * u, u = clip(up, -limit, limit).
    """

    gate: Value
    up: Value
    act: str = "silu"
    limit: float = 0.0
    """Of `LIMITED` activations."""

    def infer(self, shapes: Shapes) -> int:
        known(self.act, ACTIVATIONS)
        check_limit(self.act, self.limit)
        if self.up.width % self.gate.width:
            raise ModelError(f"{self.gate.width} and {self.up.width} columns cannot be gated")
        shapes.same_rows(self.gate, self.up)
        return self.up.width

    @property
    def columns_per_gate(self) -> int:
        """Consecutive columns that a number of the gate holds for."""
        return self.up.width // self.gate.width


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation(Op):
    """out = act(x). `act`: one of UNARY.

    xielu (arXiv:2411.13010) with alpha_n, alpha_p, beta, eps as `parameters`: for x > 0 alpha_p x^2 + beta x, else
    alpha_n (expm1(min(x, eps)) - x) + beta x. The alphas are what multiplies, after any softplus.
    """

    x: Value
    act: str
    parameters: tuple[float, ...] = ()

    def infer(self, shapes: Shapes) -> int:
        known(self.act, UNARY)
        wanted = 4 if self.act == "xielu" else 0
        if len(self.parameters) != wanted:
            raise ModelError(f"{self.act} takes {wanted} parameters, not {len(self.parameters)}")
        return self.x.width


def check_limit(act: str, limit: float) -> None:
    """Raise ModelError unless an activation has the limit that it needs, or none."""
    if (limit > 0) != (act in LIMITED) or limit < 0:
        raise ModelError(f"{act} cannot have the limit {limit:g}")
