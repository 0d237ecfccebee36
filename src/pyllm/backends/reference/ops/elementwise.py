"""Arithmetic on single numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyllm.backends.reference.functions import soft_cap
from pyllm.backends.reference.rules import F32, State, rule
from pyllm.program.ops.elementwise import Add, AddWeight, Clamp, MulWeight, Scale, SoftCap

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
    return state[op.x.id] * _spread(exe, op)


@rule(AddWeight)
def _add_weight(exe: ReferenceExecutable, op: AddWeight, batch: Batch, state: State) -> F32:
    return state[op.x.id] + _spread(exe, op)


@rule(Clamp)
def _clamp(exe: ReferenceExecutable, op: Clamp, batch: Batch, state: State) -> F32:
    return np.clip(state[op.x.id], -op.most, op.most)


def _spread(exe: ReferenceExecutable, op: MulWeight | AddWeight) -> F32:
    """The number of each column, [width]."""
    weight = exe.weights.whole(op.weight)
    assert weight is not None
    return np.repeat(weight.reshape(-1), op.x.width // weight.size)
