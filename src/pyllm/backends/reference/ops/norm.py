"""Norms. Sums over a row are taken in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyllm.backends.reference.rules import F32, State, rule
from pyllm.program.ops.norm import LayerNorm, RMSNorm

if TYPE_CHECKING:
    from pyllm.backends.base import Batch
    from pyllm.backends.reference.backend import ReferenceExecutable


def rms_norm(x: F32, weight: F32 | None, eps: float, group: int) -> F32:
    """x [tokens, width], weight [group] or [width] or None → [tokens, width]."""
    groups = x.reshape(len(x), x.shape[1] // group, group)
    mean_square = np.mean(np.square(groups, dtype=np.float64), axis=-1, keepdims=True)
    out = (groups / np.sqrt(mean_square + eps)).astype(np.float32)
    if weight is not None:
        out *= weight.reshape(-1, group)
    return out.reshape(x.shape)


@rule(RMSNorm)
def _rms_norm(exe: ReferenceExecutable, op: RMSNorm, batch: Batch, state: State) -> F32:
    return rms_norm(state[op.x.id], exe.weights.whole(op.weight), op.eps, op.group)


def layer_norm(x: F32, weight: F32 | None, bias: F32 | None, eps: float, group: int) -> F32:
    """x [tokens, width]; weight, bias [group] or [width] or None → [tokens, width]."""
    groups = x.reshape(len(x), x.shape[1] // group, group)
    centred = groups - np.mean(groups, axis=-1, keepdims=True, dtype=np.float64)
    variance = np.mean(np.square(centred), axis=-1, keepdims=True)
    out = (centred / np.sqrt(variance + eps)).astype(np.float32)
    if weight is not None:
        out *= weight.reshape(-1, group)
    if bias is not None:
        out += bias.reshape(-1, group)
    return out.reshape(x.shape)


@rule(LayerNorm)
def _layer_norm(exe: ReferenceExecutable, op: LayerNorm, batch: Batch, state: State) -> F32:
    whole = exe.weights.whole
    return layer_norm(state[op.x.id], whole(op.weight), whole(op.bias), op.eps, op.group)
