"""Mixtures of experts."""

from __future__ import annotations

from dataclasses import replace
from typing import Self

from pyllm.errors import ModelError
from pyllm.program.op import Op, Shapes, known
from pyllm.program.ops.gate import ACTIVATIONS, UNGATED
from pyllm.program.values import Value, Weight
from pyllm.records import dataclass

GATINGS = ("softmax", "sigmoid", "softmax_chosen")


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureOfExperts(Op):
    """out = sum over the chosen experts e of p[e] * down_e(act(gate_e(x)) * up_e(x)), or, without a gate, of
    p[e] * down_e(act(up_e(x))).

    `router` [tokens, n_experts] are logits. `gating`: "softmax" (over all experts, then the n_used largest),
    "sigmoid", or "softmax_chosen" (the n_used largest logits, softmax over those). `normalize` divides the chosen
    weights by their sum; `weight_scale` multiplies them. `choice_bias` [n_experts] is added for choosing only.
    gate, up [n_experts, n_ff, width], down [n_experts, width, n_ff]; their biases [n_experts, ...] or None, and
    scales [n_experts] or None, which multiply an expert's product before its bias is added.
    """

    x: Value
    router: Value
    gate: Weight | None
    up: Weight
    down: Weight
    n_used: int
    n_ff: int
    gating: str = "softmax"
    normalize: bool = False
    weight_scale: float = 1.0
    act: str = "silu"
    choice_bias: Weight | None = None
    gate_bias: Weight | None = None
    up_bias: Weight | None = None
    down_bias: Weight | None = None
    gate_scale: Weight | None = None
    up_scale: Weight | None = None
    down_scale: Weight | None = None
    n_experts: int = 0
    """The router's width, set on recording."""

    @property
    def readers(self) -> list[str]:
        """The matrices that x is multiplied by."""
        return [self.up] if self.gate is None else [self.gate, self.up]

    def settle(self, shapes: Shapes) -> Self:
        return replace(self, n_experts=self.router.width)

    def infer(self, shapes: Shapes) -> int:
        n, n_ff, width = self.n_experts, self.n_ff, self.x.width
        if not 0 < self.n_used <= n:
            raise ModelError(f"cannot use {self.n_used} of {n} experts")
        shapes.same_rows(self.x, self.router)
        for weight, bias, rows, columns in (
            (self.gate, self.gate_bias, n_ff, width),
            (self.up, self.up_bias, n_ff, width),
            (self.down, self.down_bias, width, n_ff),
        ):
            shapes.require(weight, (n, rows, columns))
            shapes.require(bias, (n, rows))
        for name in (self.choice_bias, self.gate_scale, self.up_scale, self.down_scale):
            shapes.require(name, (n,))
        known(self.gating, GATINGS)
        if self.gate is None and (self.gate_bias or self.gate_scale):
            raise ModelError("experts without a gate have no biases or scales of one")
        known(self.act, UNGATED if self.gate is None else ACTIVATIONS)
        return width
