"""Ops as mlx expressions over float32 arrays; what each of them computes is said in `pyllm.program`."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx


def rms_norm(x: mx.array, weight: mx.array | None, eps: float, group: int) -> mx.array:
    """x [tokens, width], weight [group] or [width] or None → [tokens, width]."""
    groups = x.reshape(len(x), -1, group)
    if weight is None or weight.size == group:
        return mx.fast.rms_norm(groups, weight, eps).reshape(x.shape)
    return mx.fast.rms_norm(groups, None, eps).reshape(x.shape) * weight


def rope(
    x: mx.array, positions: mx.array, head_dim: int, periods: mx.array, mscale: float, interleaved: bool
) -> mx.array:
    """x [tokens, heads * head_dim], positions int32 [tokens], periods [n_rot / 2], 1 / frequency → like x.

    Every token is a sequence of its own to mlx, which takes one offset for each.
    """
    tokens, n_rot = len(x), 2 * periods.size
    heads = mx.fast.rope(
        x.reshape(tokens, -1, 1, head_dim), n_rot, traditional=interleaved, base=None, scale=1.0,
        offset=positions, freqs=periods,
    )  # fmt: skip
    if mscale != 1.0:
        heads = heads * mx.where(mx.arange(head_dim) < n_rot, mscale, 1.0)
    return heads.reshape(x.shape)


def soft_cap(x: mx.array, cap: float) -> mx.array:
    """cap * tanh(x / cap), any shape."""
    return mx.tanh(x * (1 / cap)) * cap


def gated_activation(gate: mx.array, up: mx.array, act: str) -> mx.array:
    """Any shape."""
    if act == "swiglu_oai":
        g, u = mx.minimum(gate, 7), mx.clip(up, -7, 7)
        return g * mx.sigmoid(1.702 * g) * (u + 1)
    return _ACTIVATIONS[act](gate) * up


_ACTIVATIONS: dict[str, Callable[[mx.array], mx.array]] = {
    "silu": lambda x: x * mx.sigmoid(x),
    "gelu": lambda x: 0.5 * x * (1 + mx.tanh(0.7978845608028654 * x * (1 + 0.044715 * x * x))),
    "gelu_erf": lambda x: 0.5 * x * (1 + mx.erf(x * 0.7071067811865476)),
    "relu": lambda x: mx.maximum(x, 0),
}


def route(
    router: mx.array, n_used: int, gating: str, normalize: bool, weight_scale: float, choice_bias: mx.array | None
) -> tuple[mx.array, mx.array]:
    """Router logits [tokens, n_experts] → (experts chosen, their weights), both [tokens, n_used].

    mlx's sort is stable: of equal scores the expert of the lower number is chosen.
    """
    scores = router
    if gating == "softmax":
        scores = mx.softmax(router, axis=-1, precise=True)
    elif gating == "sigmoid":
        scores = mx.sigmoid(router)
    order = scores if choice_bias is None else scores + choice_bias
    chosen = mx.argsort(-order, axis=-1)[:, :n_used]
    weights = mx.take_along_axis(scores, chosen, axis=-1)
    if gating == "softmax_chosen":
        weights = mx.softmax(weights, axis=-1, precise=True)
    if normalize:
        weights = weights / mx.maximum(weights.sum(axis=-1, keepdims=True), 2.0**-14)
    return chosen, weights * weight_scale
