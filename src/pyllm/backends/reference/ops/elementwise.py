"""Arithmetic on single numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.backends.reference.functions import soft_cap
from pyllm.backends.reference.rules import F32, State, rule
from pyllm.program.ops.elementwise import Add, MulWeight, Scale, SoftCap

if TYPE_CHECKING:
    from pyllm.backends.base import Batch
    from pyllm.backends.reference.backend import ReferenceExecutable


@rule(Add)
def _add(exe: ReferenceExecutable, op: Add, batch: Batch, state: State) -> F32:
    return state[op.a.id] + state[op.b.id]


@rule(Scale)
def _scale(exe: ReferenceExecutable, op: Scale, batch: Batch, state: State) -> F32:
    return state[op.x.id] * op.factor


@rule(SoftCap)
def _soft_cap(exe: ReferenceExecutable, op: SoftCap, batch: Batch, state: State) -> F32:
    return soft_cap(state[op.x.id], op.cap)


@rule(MulWeight)
def _mul_weight(exe: ReferenceExecutable, op: MulWeight, batch: Batch, state: State) -> F32:
    x, weight = state[op.x.id], exe.weights.whole(op.weight)
    assert weight is not None
    return (x.reshape(len(x), weight.size, -1) * weight.reshape(-1, 1)).reshape(x.shape)
