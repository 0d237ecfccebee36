"""Rotary positions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx

from pyllm.backends.mlx.rules import rule
from pyllm.program.ops.rope import Rope

if TYPE_CHECKING:
    from pyllm.backends.mlx.lowering import Step


def rope(
    x: mx.array, positions: mx.array, head_dim: int, periods: mx.array, mscale: float, interleaved: bool
) -> mx.array:
    """x [tokens, heads * head_dim], positions int32 [tokens], periods [n_rot / 2], 1 / frequency → like x.

    Each token is passed as a sequence of its own, since mlx takes one offset per sequence.
    """
    tokens, n_rot = len(x), 2 * periods.size
    heads = mx.fast.rope(
        x.reshape(tokens, -1, 1, head_dim), n_rot, traditional=interleaved, base=None, scale=1.0,
        offset=positions, freqs=periods,
    )  # fmt: skip
    if mscale != 1.0:
        heads = heads * mx.where(mx.arange(head_dim) < n_rot, mscale, 1.0)
    return heads.reshape(x.shape)


@rule(Rope)
def _rope(s: Step, op: Rope) -> mx.array:
    periods = s.lowering.periods[op.inv_freq]
    return rope(s[op.x], s.inputs["positions"], op.head_dim, periods, op.mscale, op.interleaved)
