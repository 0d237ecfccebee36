"""Factors by position."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyllm.backends.reference.rules import F32, State, rule
from pyllm.program.ops.position import PositionScale

if TYPE_CHECKING:
    from pyllm.backends.base import Batch
    from pyllm.backends.reference.backend import ReferenceExecutable


@rule(PositionScale)
def _position_scale(exe: ReferenceExecutable, op: PositionScale, batch: Batch, state: State) -> F32:
    which = np.minimum((batch.positions[: batch.n_tokens] + op.offset) // op.length, len(op.factors) - 1)
    return state[op.x.id] * np.array(op.factors, np.float32)[which, None]
