"""The gated delta rule, as linear attention that erases what it knows of a key."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx

from pyllm.backends.mlx.recurrent import CHUNK, CHUNK_BY_ROW, attend, scan
from pyllm.backends.mlx.rules import rule
from pyllm.program.ops.delta import DeltaRule

if TYPE_CHECKING:
    from pyllm.backends.mlx.lowering import Step


@rule(DeltaRule)
def _delta_rule(s: Step, op: DeltaRule) -> mx.array:
    n = len(s[op.q])
    q, k = (s[x].reshape(n, op.n_key_heads, op.key_dim) for x in (op.q, op.k))
    if op.n_key_heads != op.n_heads:
        heads = mx.array([op.key_head(h) for h in range(op.n_heads)])
        q, k = q[:, heads], k[:, heads]
    v, decay, beta = (s[x].reshape(n, op.n_heads, -1) for x in (op.v, op.decay, op.beta))
    values = q * op.scale, k, beta * v, decay, mx.exp(decay) * k, -beta * k
    return scan(s, op, attend, CHUNK_BY_ROW if op.decays_by_row else CHUNK, *values)
