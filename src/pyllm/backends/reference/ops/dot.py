"""Scalar products. Sums are taken in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyllm.backends.reference.rules import F32, State, rule
from pyllm.program.ops.dot import Dot

if TYPE_CHECKING:
    from pyllm.backends.base import Batch
    from pyllm.backends.reference.backend import ReferenceExecutable


@rule(Dot)
def _dot(exe: ReferenceExecutable, op: Dot, batch: Batch, state: State) -> F32:
    a, b = (state[value.id].reshape(-1, op.out.width, op.group) for value in (op.a, op.b))
    return np.einsum("tgc,tgc->tg", a, b, dtype=np.float64).astype(np.float32)
