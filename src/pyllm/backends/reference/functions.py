"""Functions shared by several ops. float32 in and out; sums of a softmax are taken in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]


def softmax(scores: F32, sink: F32 | None = None) -> F32:
    """Over the last axis; `sink` (broadcast against it, width 1) joins the sum only."""
    top = scores.max(axis=-1, keepdims=True)
    if sink is not None:
        top = np.maximum(top, sink)
    e = np.exp(scores - top)
    total = e.sum(axis=-1, keepdims=True, dtype=np.float64)
    if sink is not None:
        total = total + np.exp(sink - top)
    return (e / total).astype(np.float32)


def sigmoid(x: NDArray[np.floating]) -> F32:
    with np.errstate(over="ignore"):  # exp overflows to inf, and 1 / inf is the right answer
        return (1 / (1 + np.exp(-x))).astype(np.float32, copy=False)


def soft_cap(x: F32, cap: float) -> F32:
    """cap * tanh(x / cap), any shape."""
    return cap * np.tanh(x / cap)
