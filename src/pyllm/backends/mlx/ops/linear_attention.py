"""Linear attention."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import mlx.core as mx

from pyllm.backends.mlx.recurrent import CHUNK, CHUNK_BY_ROW, attend, scan
from pyllm.backends.mlx.rules import rule
from pyllm.program.ops.linear_attention import LinearAttention

if TYPE_CHECKING:
    from pyllm.backends.mlx.lowering import Step


@rule(LinearAttention)
def _linear_attention(s: Step, op: LinearAttention) -> mx.array:
    n = len(s[op.q])
    q = s[op.q].reshape(n, op.n_heads, op.key_dim)
    k, v = (mx.repeat(s[x].reshape(n, op.n_key_heads, -1), op.n_heads // op.n_key_heads, axis=1) for x in (op.k, op.v))
    if op.decay is None:
        decay = mx.broadcast_to(mx.array(op.decays, mx.float32)[:, None], (n, op.n_heads, 1))
    else:
        decay = s[op.decay].reshape(q.shape)
    if op.complement:
        k = k * (1 - mx.exp(decay))
    values = [q * op.scale, k, v, decay]
    if op.erase is not None and op.insert is not None:
        values += [s[x].reshape(q.shape) for x in (op.erase, op.insert)]
    chunk = CHUNK if op.decay is None else CHUNK_BY_ROW
    return scan(s, op, partial(attend, before=op.before), chunk, *values)
