"""The ops as plain functions of float32 arrays; what each computes is said in `pyllm.program`.

Everything is float32 in and out. Sums over a row (norms, softmax) are taken in float64, products by numpy's matmul.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]


def rms_norm(x: F32, weight: F32 | None, eps: float, group: int) -> F32:
    """x [tokens, width], weight [group] or [width] or None → [tokens, width]."""
    groups = x.reshape(len(x), x.shape[1] // group, group)
    mean_square = np.mean(np.square(groups, dtype=np.float64), axis=-1, keepdims=True)
    out = (groups / np.sqrt(mean_square + eps)).astype(np.float32)
    if weight is not None:
        out *= weight.reshape(-1, group)
    return out.reshape(x.shape)


def linear(x: F32, weight: F32, bias: F32 | None = None) -> F32:
    """x [tokens, columns], weight [rows, columns], bias [rows] → [tokens, rows]."""
    out = x @ weight.T
    return out if bias is None else out + bias


def rope(
    x: F32,
    positions: NDArray[np.integer],
    head_dim: int,
    inv_freq: tuple[float, ...] | F32,
    mscale: float = 1.0,
    interleaved: bool = False,
) -> F32:
    """x [tokens, heads * head_dim], positions [tokens], inv_freq [n_rot / 2] → like x.

    The angle is a float32 product, as in every engine; its sine and cosine are exact.
    """
    half = len(inv_freq)
    angle = positions.astype(np.float32)[:, None] * np.asarray(inv_freq, np.float32)  # [tokens, half]
    cos = (np.cos(angle, dtype=np.float64) * mscale).astype(np.float32)[:, None]  # [tokens, 1, half]
    sin = (np.sin(angle, dtype=np.float64) * mscale).astype(np.float32)[:, None]
    heads = x.reshape(len(x), x.shape[1] // head_dim, head_dim)
    out = heads.copy()
    first, second = (
        (slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if interleaved else (slice(half), slice(half, 2 * half))
    )
    a, b = heads[..., first], heads[..., second]
    out[..., first] = a * cos - b * sin
    out[..., second] = a * sin + b * cos
    return out.reshape(x.shape)


def store(values: F32, cache: NDArray[np.floating], pages: NDArray[np.integer], position: int) -> None:
    """Write one sequence's keys or values [tokens, n_kv_heads * dim], the first at `position`, into the pages
    cache [n_pages, page_size, n_kv_heads, dim] that its table `pages` names."""
    page_size = cache.shape[1]
    where = np.arange(position, position + len(values))
    cache[pages[where // page_size], where % page_size] = values.reshape(len(values), *cache.shape[2:])


def load(cache: NDArray[np.floating], pages: NDArray[np.integer], start: int, stop: int) -> F32:
    """Positions start .. stop - 1 of one sequence out of its pages → [positions, n_kv_heads, dim]."""
    page_size = cache.shape[1]
    where = np.arange(start, stop)
    return cache[pages[where // page_size], where % page_size].astype(np.float32)


def attention(
    q: F32,
    k: F32,
    v: F32,
    position: int,
    start: int,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: F32 | None = None,
) -> F32:
    """Causal attention within one sequence.

    q [tokens, n_heads, head_dim] of the positions from `position` on; k [keys, n_kv_heads, head_dim] and
    v [keys, n_kv_heads, v_head_dim] of the positions from `start` on → [tokens, n_heads * v_head_dim].
    """
    n_tokens, n_heads, head_dim = q.shape
    n_kv = k.shape[1]
    grouped = q.reshape(n_tokens, n_kv, n_heads // n_kv, head_dim)
    scores = np.einsum("tkgd,skd->kgts", grouped, k, optimize=True) * scale
    if softcap:
        scores = soft_cap(scores, softcap)
    at = np.arange(position, position + n_tokens)[:, None]  # [tokens, 1]
    key = np.arange(start, start + len(k))  # [keys]
    hidden = (key > at) | ((key <= at - window) if window else False)
    scores = np.where(hidden, -np.inf, scores)
    sink = None if sinks is None else sinks.reshape(n_kv, -1, 1, 1)
    weights = _softmax(scores, sink)
    out = np.einsum("kgts,skd->tkgd", weights, v, optimize=True)
    return np.ascontiguousarray(out.reshape(n_tokens, -1), dtype=np.float32)


def gated_activation(gate: F32, up: F32, act: str = "silu") -> F32:
    """gate, up [tokens, width] → [tokens, width]."""
    if act == "swiglu_oai":
        g, u = np.minimum(gate, 7), np.clip(up, -7, 7)
        return g * _sigmoid(1.702 * g) * (u + 1)
    return _ACTIVATIONS[act](gate) * up


def soft_cap(x: F32, cap: float) -> F32:
    """cap * tanh(x / cap), any shape."""
    return cap * np.tanh(x / cap)


def route(
    router: F32,
    n_used: int,
    *,
    gating: str = "softmax",
    normalize: bool = False,
    weight_scale: float = 1.0,
    choice_bias: F32 | None = None,
) -> tuple[NDArray[np.int64], F32]:
    """Router logits [tokens, n_experts] → (chosen experts, their weights), both [tokens, n_used].

    Of equal scores the expert of the lower number is chosen.
    """
    if gating == "softmax":
        scores = _softmax(router)
    elif gating == "sigmoid":
        scores = _sigmoid(router)
    else:
        scores = router
    order = scores if choice_bias is None else scores + choice_bias
    chosen = np.argsort(-order, axis=-1, kind="stable")[:, :n_used]
    weights = np.take_along_axis(scores, chosen, axis=-1)
    if gating == "softmax_chosen":
        weights = _softmax(weights)
    if normalize:
        weights = weights / np.maximum(weights.sum(axis=-1, keepdims=True), 2.0**-14)
    return chosen, weights * weight_scale


def mixture_of_experts(
    x: F32,
    chosen: NDArray[np.integer],
    weights: F32,
    expert: Callable[[int, F32], F32],
) -> F32:
    """x [tokens, width]; chosen, weights [tokens, n_used] of `route`; expert(e, rows of x) → [rows, width].

    Each expert is asked once, with the tokens that chose it.
    """
    out = np.zeros_like(x)
    for e in np.unique(chosen):
        token, slot = np.nonzero(chosen == e)
        out[token] += weights[token, slot, None] * expert(int(e), x[token])
    return out


def _softmax(scores: F32, sink: F32 | None = None) -> F32:
    """Over the last axis; `sink` (broadcast against it, width 1) joins the sum only."""
    top = scores.max(axis=-1, keepdims=True)
    if sink is not None:
        top = np.maximum(top, sink)
    e = np.exp(scores - top)
    total = e.sum(axis=-1, keepdims=True, dtype=np.float64)
    if sink is not None:
        total = total + np.exp(sink - top)
    return (e / total).astype(np.float32)


def _sigmoid(x: NDArray[np.floating]) -> F32:
    with np.errstate(over="ignore"):  # exp overflows to inf, and 1 / inf is the right answer
        return (1 / (1 + np.exp(-x))).astype(np.float32, copy=False)


def _gelu(x: F32) -> F32:
    inner = 0.7978845608028654 * x * (1 + 0.044715 * x * x)
    return (0.5 * x * (1 + np.tanh(inner))).astype(np.float32, copy=False)


def _gelu_erf(x: F32) -> F32:
    from math import erf

    values = np.fromiter((erf(v) for v in x.ravel() / np.sqrt(2.0)), np.float32, x.size).reshape(x.shape)
    return 0.5 * x * (1 + values)


_ACTIVATIONS: dict[str, Callable[[F32], F32]] = {
    "silu": lambda x: x * _sigmoid(x),
    "gelu": _gelu,
    "gelu_erf": _gelu_erf,
    "relu": lambda x: np.maximum(x, 0),
}
