"""Arithmetic on single numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx

from pyllm.backends.mlx.rules import rule
from pyllm.program.ops.elementwise import Add, AddWeight, Clamp, MulWeight, Scale, SoftCap

if TYPE_CHECKING:
    from pyllm.backends.mlx.lowering import Step


def soft_cap(x: mx.array, cap: float) -> mx.array:
    """cap * tanh(x / cap), any shape."""
    return mx.tanh(x * (1 / cap)) * cap


@rule(Add)
def _add(s: Step, op: Add) -> mx.array:
    return s[op.a] + s[op.b]


@rule(Scale)
def _scale(s: Step, op: Scale) -> mx.array:
    return s[op.x] * op.factor


@rule(SoftCap)
def _soft_cap(s: Step, op: SoftCap) -> mx.array:
    return soft_cap(s[op.x], op.cap)


@rule(MulWeight)
def _mul_weight(s: Step, op: MulWeight) -> mx.array:
    return s[op.x] * _spread(s, op)


@rule(AddWeight)
def _add_weight(s: Step, op: AddWeight) -> mx.array:
    return s[op.x] + _spread(s, op)


@rule(Clamp)
def _clamp(s: Step, op: Clamp) -> mx.array:
    return mx.clip(s[op.x], -op.most, op.most)


def _spread(s: Step, op: MulWeight | AddWeight) -> mx.array:
    """The number of each column, [width]."""
    weight = s.lowering.vectors[op.weight].reshape(-1)
    return mx.repeat(weight, op.x.width // weight.size)
