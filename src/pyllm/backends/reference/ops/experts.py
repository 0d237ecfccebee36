"""Mixtures of experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pyllm.backends.reference.functions import sigmoid, softmax
from pyllm.backends.reference.ops.gate import ACTIVATIONS, gated_activation
from pyllm.backends.reference.rules import F32, State, rule
from pyllm.program.ops.experts import MixtureOfExperts

if TYPE_CHECKING:
    from pyllm.backends.base import Batch
    from pyllm.backends.reference.backend import ReferenceExecutable


def route(
    router: F32,
    n_used: int,
    *,
    gating: str = "softmax",
    normalize: bool = False,
    weight_scale: float = 1.0,
    choice_bias: F32 | None = None,
    sharing: int = 1,
    n_groups: int = 0,
    n_groups_used: int = 0,
) -> tuple[NDArray[np.int64], F32]:
    """Router logits [tokens, n_experts] → (chosen matrices, their weights), both [tokens, n_used].

    Of equal scores the expert of the lower number is chosen. `sharing`: experts that share matrices.
    With `n_groups`, experts of the `n_groups_used` best groups alone are chosen.
    """
    if gating == "softmax":
        scores = softmax(router)
    elif gating == "sigmoid":
        scores = sigmoid(router)
    else:
        scores = router
    order = scores if choice_bias is None else scores + choice_bias
    if n_groups:
        order = _of_groups(order, n_groups, n_groups_used)
    chosen = np.argsort(-order, axis=-1, kind="stable")[:, :n_used] // sharing
    weights = np.take_along_axis(scores, chosen, axis=-1)
    if gating == "softmax_chosen":
        weights = softmax(weights)
    if normalize:
        weights = weights / np.maximum(weights.sum(axis=-1, keepdims=True), 2.0**-14)
    return chosen, weights * weight_scale


def _of_groups(order: F32, n_groups: int, n_used: int) -> F32:
    """Scores [tokens, n_experts], -inf where the sum of a group's two largest is not among the n_used largest sums."""
    groups = order.reshape(len(order), n_groups, -1)
    best = np.sort(groups, axis=-1)[..., -2:].sum(axis=-1)  # [tokens, n_groups]
    used = np.argsort(-best, axis=-1, kind="stable")[:, :n_used]
    kept = np.full_like(groups, -np.inf)
    np.put_along_axis(kept, used[..., None], np.take_along_axis(groups, used[..., None], axis=1), axis=1)
    return kept.reshape(order.shape)


def mixture_of_experts(
    x: F32,
    chosen: NDArray[np.integer],
    weights: F32,
    expert: Callable[[int, NDArray[np.integer], F32], F32],
) -> F32:
    """x [tokens, width]; chosen, weights [tokens, n_used] of `route`; expert(e, tokens, their weights [n, 1]) →
    [n, width], weighed.

    Each expert is asked once, with the tokens that chose it, one perhaps twice.
    """
    out = np.zeros_like(x)
    for e in np.unique(chosen):
        token, slot = np.nonzero(chosen == e)
        np.add.at(out, token, expert(int(e), token, weights[token, slot, None]))
    return out


@rule(MixtureOfExperts)
def _mixture_of_experts(exe: ReferenceExecutable, op: MixtureOfExperts, batch: Batch, state: State) -> F32:
    whole = exe.weights.whole
    chosen, weights = route(
        state[op.router.id],
        op.n_used,
        gating=op.gating,
        normalize=op.normalize,
        weight_scale=op.weight_scale,
        choice_bias=whole(op.choice_bias),
        sharing=op.sharing,
        n_groups=op.n_groups,
        n_groups_used=op.n_groups_used,
    )
    x, seqs = state[op.x.id], exe.sequences(op.x, batch)

    def project(e: int, rows: F32, of: NDArray[np.int32], part: str, n: int) -> F32:
        exe.observe(getattr(op, part), rows, e, op.n_matrices)
        out = exe.matmul(rows, of, getattr(op, part), e * n, (e + 1) * n)
        scale, bias = whole(getattr(op, f"{part}_scale")), whole(getattr(op, f"{part}_bias"))
        if scale is not None:
            out = out * scale[e]
        return out if bias is None else out + bias[e]

    def expert(e: int, tokens: NDArray[np.integer], weight: F32) -> F32:
        rows, of = x[tokens], seqs[tokens]
        if op.weighs_input:
            rows = rows * weight
        up = project(e, rows, of, "up", op.n_ff)
        if op.gate is None:
            active = ACTIVATIONS[op.act](up)
        else:
            active = gated_activation(project(e, rows, of, "gate", op.n_ff), up, op.act, op.limit)
        out = project(e, active, of, "down", op.x.width)
        return out if op.weighs_input else out * weight

    return mixture_of_experts(x, chosen, weights, expert)
