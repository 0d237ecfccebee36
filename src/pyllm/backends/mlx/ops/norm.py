"""Norms."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx

from pyllm.backends.mlx.rules import rule
from pyllm.program.ops.norm import RMSNorm

if TYPE_CHECKING:
    from pyllm.backends.mlx.lowering import Step


def rms_norm(x: mx.array, weight: mx.array | None, eps: float, group: int) -> mx.array:
    """x [tokens, width], weight [group] or [width] or None → [tokens, width]."""
    groups = x.reshape(len(x), -1, group)
    if weight is None or weight.size == group:
        return mx.fast.rms_norm(groups, weight, eps).reshape(x.shape)
    return mx.fast.rms_norm(groups, None, eps).reshape(x.shape) * weight


@rule(RMSNorm)
def _rms_norm(s: Step, op: RMSNorm) -> mx.array:
    return rms_norm(s[op.x], s.vector(op.weight), op.eps, op.group)
