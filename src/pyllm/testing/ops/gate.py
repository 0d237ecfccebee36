"""Activations and what they gate: cases."""

from __future__ import annotations

from pyllm.program import Value
from pyllm.program.ops.elementwise import Scale
from pyllm.program.ops.gate import ACTIVATIONS, LIMITED, UNARY, Activation, GatedActivation
from pyllm.program.ops.select import Slice
from pyllm.testing.models import Builder, Record


def _gated(act: str, gate: float = 1.0, up: float = 2.0) -> Record:
    """A gated activation of x times two factors."""
    limit = 0.5 if act in LIMITED else 0.0

    def record(b: Builder, x: Value) -> Value:
        return b(GatedActivation(gate=b(Scale(x=x, factor=gate)), up=b(Scale(x=x, factor=up)), act=act, limit=limit))

    return record


def _narrow(width: int, act: str) -> Record:
    """A gate with fewer columns than its input."""

    def record(b: Builder, x: Value) -> Value:
        return b(GatedActivation(gate=b(Slice(x=x, start=8, width=width)), up=x, act=act))

    return record


def _alone(act: str, factor: float = 1.0, parameters: tuple[float, ...] = ()) -> Record:
    return lambda b, x: b(Activation(x=b(Scale(x=x, factor=factor)), act=act, parameters=parameters))


CASES: dict[str, Record] = {
    **{act: _gated(act) for act in ACTIVATIONS},
    "swiglu_oai_clipped": _gated("swiglu_oai", 4.0, -5.0),
    "silu_far": _gated("silu", 100.0, 1.0),
    "gate_of_heads": _narrow(4, "sigmoid"),
    "gate_of_token": _narrow(1, "silu"),
    **{f"alone_{act}": _alone(act) for act in UNARY if act != "xielu"},
    "alone_softplus_far": _alone("softplus", 100.0),
    "xielu": _alone("xielu", 2.0, (0.8, 0.6, 0.5, -1e-6)),
}
