"""Norms. Sums over a row are taken in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyllm.backends.reference.rules import F32, State, rule
from pyllm.program.ops.norm import LayerNorm, RMSNorm

if TYPE_CHECKING:
    from pyllm.backends.base import Batch
    from pyllm.backends.reference.backend import ReferenceExecutable


def rms_norm(x: F32, weight: F32 | None, eps: float, group: int, bias: F32 | None = None) -> F32:
    """x [tokens, width]; weight, bias [group] or [width] or None → [tokens, width]."""
    groups = x.reshape(len(x), x.shape[1] // group, group)
    mean_square = np.mean(np.square(groups, dtype=np.float64), axis=-1, keepdims=True)
    return _scaled((groups / np.sqrt(mean_square + eps)).astype(np.float32), weight, bias).reshape(x.shape)


@rule(RMSNorm)
def _rms_norm(exe: ReferenceExecutable, op: RMSNorm, batch: Batch, state: State) -> F32:
    whole = exe.weights.whole
    return rms_norm(state[op.x.id], whole(op.weight), op.eps, op.group, whole(op.bias))


def layer_norm(x: F32, weight: F32 | None, bias: F32 | None, eps: float, group: int) -> F32:
    """x [tokens, width]; weight, bias [group] or [width] or None → [tokens, width]."""
    groups = x.reshape(len(x), x.shape[1] // group, group)
    centred = groups - np.mean(groups, axis=-1, keepdims=True, dtype=np.float64)
    variance = np.mean(np.square(centred), axis=-1, keepdims=True)
    return _scaled((centred / np.sqrt(variance + eps)).astype(np.float32), weight, bias).reshape(x.shape)


@rule(LayerNorm)
def _layer_norm(exe: ReferenceExecutable, op: LayerNorm, batch: Batch, state: State) -> F32:
    whole = exe.weights.whole
    return layer_norm(state[op.x.id], whole(op.weight), whole(op.bias), op.eps, op.group)


def _scaled(groups: F32, weight: F32 | None, bias: F32 | None) -> F32:
    """groups * weight + bias, [tokens, groups, group]."""
    if weight is not None:
        groups *= weight.reshape(-1, groups.shape[-1])
    return groups if bias is None else groups + bias.reshape(-1, groups.shape[-1])
