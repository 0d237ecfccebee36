"""Mixtures of experts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx

from pyllm.backends.mlx.ops.gate import ACTIVATIONS, gated_activation
from pyllm.backends.mlx.rules import rule
from pyllm.program.ops.experts import MixtureOfExperts

if TYPE_CHECKING:
    from pyllm.backends.mlx.lowering import Step


def route(
    router: mx.array,
    n_used: int,
    gating: str,
    normalize: bool,
    weight_scale: float,
    choice_bias: mx.array | None,
    sharing: int = 1,
    n_groups: int = 0,
    n_groups_used: int = 0,
) -> tuple[mx.array, mx.array]:
    """Router logits [tokens, n_experts] → (matrices chosen, their weights), both [tokens, n_used]. `sharing`: experts
    that share matrices. With `n_groups`, experts of the `n_groups_used` best groups alone are chosen.

    mlx's sort is stable: of equal scores the expert of the lower number is chosen.
    """
    scores = router
    if gating == "softmax":
        scores = mx.softmax(router, axis=-1, precise=True)
    elif gating == "sigmoid":
        scores = mx.sigmoid(router)
    order = scores if choice_bias is None else scores + choice_bias
    if n_groups:
        groups = order.reshape(len(order), n_groups, -1)
        best = mx.sort(groups, axis=-1)[..., -2:].sum(axis=-1)
        rank = mx.argsort(mx.argsort(-best, axis=-1), axis=-1)
        order = mx.where((rank < n_groups_used)[..., None], groups, -float("inf")).reshape(order.shape)
    chosen = mx.argsort(-order, axis=-1)[:, :n_used] // sharing
    weights = mx.take_along_axis(scores, chosen, axis=-1)
    if gating == "softmax_chosen":
        weights = mx.softmax(weights, axis=-1, precise=True)
    if normalize:
        weights = weights / mx.maximum(weights.sum(axis=-1, keepdims=True), 2.0**-14)
    return chosen, weights * weight_scale


@rule(MixtureOfExperts)
def _experts(s: Step, op: MixtureOfExperts) -> mx.array:
    chosen, weights = route(
        s[op.router], op.n_used, op.gating, op.normalize, op.weight_scale, s.vector(op.choice_bias), op.sharing,
        op.n_groups, op.n_groups_used,
    )  # fmt: skip
    factors = weights[..., None]

    def project(x: mx.array, part: str) -> mx.array:
        out = s.lowering.matrices[getattr(op, part)].experts(x, chosen)
        if op.weighs_input and part != "down":
            out = out * factors
        scale, bias = s.vector(getattr(op, f"{part}_scale")), s.vector(getattr(op, f"{part}_bias"))
        if scale is not None:
            out = out * scale[chosen][..., None]
        return out if bias is None else out + bias[chosen]

    x = s[op.x][:, None]
    up = project(x, "up")
    inner = ACTIVATIONS[op.act](up) if op.gate is None else gated_activation(project(x, "gate"), up, op.act, op.limit)
    out = project(inner, "down")
    return (out if op.weighs_input else out * factors).sum(axis=1)
