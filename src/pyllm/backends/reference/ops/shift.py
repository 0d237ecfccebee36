"""The tokens before."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyllm.backends.reference.recurrent import scan
from pyllm.backends.reference.rules import F32, State, rule
from pyllm.program.ops.shift import TokenShift

if TYPE_CHECKING:
    from pyllm.backends.base import Batch
    from pyllm.backends.reference.backend import ReferenceExecutable


@rule(TokenShift)
def _token_shift(exe: ReferenceExecutable, op: TokenShift, batch: Batch, state: State) -> F32:
    x = state[op.x.id]

    def advance(rows: slice, before: F32) -> F32:
        out = -np.diff(x[rows], axis=0, prepend=before[None])
        before[:] = x[rows.stop - 1]
        return out

    return scan(exe, op, batch, advance)
