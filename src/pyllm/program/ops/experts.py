"""Mixtures of experts."""

from __future__ import annotations

from dataclasses import replace
from typing import Self

from pyllm.errors import ModelError
from pyllm.program.op import Op, Shapes, known
from pyllm.program.ops.gate import ACTIVATIONS, UNGATED, check_limit
from pyllm.program.values import Value, Weight
from pyllm.records import dataclass

GATINGS = ("softmax", "sigmoid", "softmax_chosen")


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureOfExperts(Op):
    """out = sum over the chosen experts e of p[e] * down_e(act(gate_e(x)) * up_e(x)), or, without a gate, of
    p[e] * down_e(act(up_e(x))); where `weighs_input`, of down_e(act(gate_e(p[e] * x)) * up_e(p[e] * x)).

    `router` [tokens, n_experts] are logits. `gating`: "softmax" (over all experts, then the n_used largest),
    "sigmoid", or "softmax_chosen" (the n_used largest logits, softmax over those). `normalize` divides the chosen
    weights by their sum; `weight_scale` multiplies them. `choice_bias` [n_experts] is added for choosing only.
    gate, up [n_matrices, n_ff, width], down [n_matrices, width, n_ff]; their biases [n_matrices, ...] or None, and
    scales [n_matrices] or None, which multiply an expert's product before its bias is added. Where experts share
    matrices, `sharing` of them each, e above is the number of the matrices, e // sharing; then weights are those of the
    experts 0, 1, ... of the matrices' numbers (Grove).
    Where there are `n_groups` of consecutive experts, those are chosen from that are in the `n_groups_used` groups
    whose two largest scores have the largest sums (DeepSeek 3).
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
    limit: float = 0.0
    """Of the activation, as `GatedActivation`'s."""
    weighs_input: bool = False
    sharing: int = 1
    n_groups: int = 0
    n_groups_used: int = 0
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

    @property
    def n_matrices(self) -> int:
        """Number of matrices of a kind: of experts, or of groups of them that share."""
        return self.n_experts // self.sharing

    def settle(self, shapes: Shapes) -> Self:
        return replace(self, n_experts=self.router.width)

    def infer(self, shapes: Shapes) -> int:
        n_ff, width = self.n_ff, self.x.width
        if not 0 < self.n_used <= self.n_experts:
            raise ModelError(f"cannot use {self.n_used} of {self.n_experts} experts")
        if self.sharing < 1 or self.n_experts % self.sharing:
            raise ModelError(f"{self.n_experts} experts cannot share matrices, {self.sharing} each")
        self._check_groups()
        n = self.n_matrices
        shapes.same_rows(self.x, self.router)
        for weight, bias, rows, columns in (
            (self.gate, self.gate_bias, n_ff, width),
            (self.up, self.up_bias, n_ff, width),
            (self.down, self.down_bias, width, n_ff),
        ):
            shapes.require(weight, (n, rows, columns))
            shapes.require(bias, (n, rows))
        for name in (self.gate_scale, self.up_scale, self.down_scale):
            shapes.require(name, (n,))
        shapes.require(self.choice_bias, (self.n_experts,))
        if self.weighs_input and (self.gate_bias or self.up_bias):
            raise ModelError("experts whose inputs are weighed have no biases of gates and ups")
        check_limit(self.act, self.limit)
        known(self.gating, GATINGS)
        if self.gate is None and (self.gate_bias or self.gate_scale):
            raise ModelError("experts without a gate have no biases or scales of one")
        known(self.act, UNGATED if self.gate is None else ACTIVATIONS)
        return width

    def _check_groups(self) -> None:
        n, used = self.n_groups, self.n_groups_used
        if not n:
            return
        if n < 1 or self.n_experts % n or self.n_experts < 2 * n or not 0 < used <= n:
            raise ModelError(f"{self.n_experts} experts cannot be chosen from {used} of {n} groups")
        if self.n_used > self.n_experts // n * used:
            raise ModelError(f"cannot use {self.n_used} experts of {used} groups of {self.n_experts // n}")
