"""Norms."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx

from pyllm.backends.mlx.rules import rule
from pyllm.program.ops.norm import LayerNorm, RMSNorm

if TYPE_CHECKING:
    from pyllm.backends.mlx.lowering import Step


def rms_norm(x: mx.array, weight: mx.array | None, eps: float, group: int, bias: mx.array | None = None) -> mx.array:
    """x [tokens, width]; weight, bias [group] or [width], in any axes, or None → [tokens, width]."""
    groups = x.reshape(len(x), -1, group)
    if weight is None or weight.size == group:
        out = mx.fast.rms_norm(groups, weight, eps)
    else:
        out = mx.fast.rms_norm(groups, None, eps) * weight.reshape(-1, group)
    return (out if bias is None else out + bias.reshape(-1, group)).reshape(x.shape)


@rule(RMSNorm)
def _rms_norm(s: Step, op: RMSNorm) -> mx.array:
    return rms_norm(s[op.x], s.vector(op.weight), op.eps, op.group, s.vector(op.bias))


def layer_norm(x: mx.array, weight: mx.array | None, bias: mx.array | None, eps: float, group: int) -> mx.array:
    """x [tokens, width]; weight, bias [group] or [width] or None → [tokens, width]."""
    out = mx.fast.layer_norm(x.reshape(len(x), -1, group), None, None, eps)
    if weight is not None:
        out = out * weight.reshape(-1, group)
    return (out if bias is None else out + bias.reshape(-1, group)).reshape(x.shape)


@rule(LayerNorm)
def _layer_norm(s: Step, op: LayerNorm) -> mx.array:
    return layer_norm(s[op.x], s.vector(op.weight), s.vector(op.bias), op.eps, op.group)
