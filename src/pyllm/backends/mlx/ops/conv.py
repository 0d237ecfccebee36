"""Convolution over the last tokens."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import mlx.core as mx

from pyllm.backends.mlx.recurrent import scan
from pyllm.backends.mlx.rules import rule
from pyllm.program.ops.conv import ShortConv

if TYPE_CHECKING:
    from pyllm.backends.mlx.lowering import Step


def convolve(before: mx.array, x: mx.array, weight: mx.array) -> tuple[mx.array, mx.array]:
    """x [n_seqs, tokens, width] after the rows `before` [n_seqs, kernel - 1, width], weight [width, kernel] → (like x,
    its last kernel - 1 rows)."""
    rows, n, kernel = mx.concatenate([before, x], axis=1), x.shape[1], weight.shape[1]
    out = rows[:, :n] * weight[:, 0]
    for j in range(1, kernel):
        out = out + rows[:, j : j + n] * weight[:, j]
    return out, rows[:, n:]


@rule(ShortConv)
def _short_conv(s: Step, op: ShortConv) -> mx.array:
    x, bias = s[op.x], s.vector(op.bias)
    out = scan(s, op, partial(convolve, weight=s.lowering.vectors[op.weight]), len(x), x)
    return out if bias is None else out + bias
