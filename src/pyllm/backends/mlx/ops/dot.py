"""Scalar products."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx

from pyllm.backends.mlx.rules import rule
from pyllm.program.ops.dot import Dot

if TYPE_CHECKING:
    from pyllm.backends.mlx.lowering import Step


@rule(Dot)
def _dot(s: Step, op: Dot) -> mx.array:
    a = s[op.a]
    return (a * s[op.b]).reshape(len(a), op.out.width, op.group).sum(axis=-1)
