"""The gated delta rule, token by token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyllm.backends.reference.recurrent import scan
from pyllm.backends.reference.rules import F32, State, rule
from pyllm.program.ops.delta import DeltaRule

if TYPE_CHECKING:
    from pyllm.backends.base import Batch
    from pyllm.backends.reference.backend import ReferenceExecutable


def delta_step(s: F32, q: F32, k: F32, v: F32, decay: F32, beta: F32) -> F32:
    """One token. s [heads, key_dim, value_dim] is changed; q, k [heads, key_dim], v [heads, value_dim], decay [heads, 1
    or key_dim], beta [heads, 1] → [heads, value_dim]."""
    s *= np.exp(decay)[:, :, None]
    error = beta * (v - np.einsum("hkv,hk->hv", s, k))
    s += k[:, :, None] * error[:, None, :]
    return np.einsum("hkv,hk->hv", s, q)


@rule(DeltaRule)
def _delta_rule(exe: ReferenceExecutable, op: DeltaRule, batch: Batch, state: State) -> F32:
    heads = [op.key_head(h) for h in range(op.n_heads)]
    q, k = (state[v.id].reshape(-1, op.n_key_heads, op.key_dim)[:, heads] for v in (op.q, op.k))
    v = state[op.v.id].reshape(-1, op.n_heads, op.value_dim)
    decay, beta = (state[v.id].reshape(len(v_), op.n_heads, -1) for v, v_ in ((op.decay, v), (op.beta, v)))

    def advance(rows: slice, s: F32) -> F32:
        out = [delta_step(s, q[t], k[t], v[t], decay[t], beta[t]) for t in range(rows.start, rows.stop)]
        return np.stack(out).reshape(len(out), -1) * np.float32(op.scale)

    return scan(exe, op, batch, advance)
