"""The tokens before."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx

from pyllm.backends.mlx.recurrent import scan
from pyllm.backends.mlx.rules import rule
from pyllm.program.ops.shift import TokenShift

if TYPE_CHECKING:
    from pyllm.backends.mlx.lowering import Step


def shift(before: mx.array, x: mx.array) -> tuple[mx.array, mx.array]:
    """x [n_seqs, tokens, width] after the rows `before` [n_seqs, width] → (the row before each less it, the last
    row)."""
    return mx.concatenate([before[:, None], x[:, :-1]], axis=1) - x, x[:, -1]


@rule(TokenShift)
def _token_shift(s: Step, op: TokenShift) -> mx.array:
    x = s[op.x]
    return scan(s, op, shift, len(x), x)
