"""Convolution over the last tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyllm.backends.reference.recurrent import scan
from pyllm.backends.reference.rules import F32, State, rule
from pyllm.program.ops.conv import ShortConv

if TYPE_CHECKING:
    from pyllm.backends.base import Batch
    from pyllm.backends.reference.backend import ReferenceExecutable


def convolve(x: F32, before: F32, weight: F32, bias: F32 | None) -> F32:
    """x [tokens, width] after the rows `before` [kernel - 1, width], weight [width, kernel] → [tokens, width]."""
    rows = np.concatenate([before, x])
    n, kernel = len(x), weight.shape[1]
    out = np.zeros_like(x) if bias is None else np.tile(bias, (n, 1))
    for j in range(kernel):
        out += rows[j : j + n] * weight[:, j]
    return out


@rule(ShortConv)
def _short_conv(exe: ReferenceExecutable, op: ShortConv, batch: Batch, state: State) -> F32:
    x, weight, bias = state[op.x.id], exe.weights.whole(op.weight), exe.weights.whole(op.bias)

    def advance(rows: slice, before: F32) -> F32:
        out = convolve(x[rows], before, weight, bias)
        before[:] = np.concatenate([before, x[rows]])[-len(before) :]
        return out

    return scan(exe, op, batch, advance)
