"""Linear attention, token by token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyllm.backends.reference.recurrent import scan
from pyllm.backends.reference.rules import F32, State, rule
from pyllm.program.ops.linear_attention import LinearAttention

if TYPE_CHECKING:
    from pyllm.backends.base import Batch
    from pyllm.backends.reference.backend import ReferenceExecutable


def read(s: F32, q: F32) -> F32:
    """S.T q of each head: s [heads, key_dim, value_dim], q [heads, key_dim] → [heads, value_dim]."""
    return np.einsum("hkv,hk->hv", s, q)


def take_in(
    s: F32, k: F32, v: F32, factor: F32, erase: F32 | None = None, insert: F32 | None = None, complement: bool = False
) -> None:
    """One token. s [heads, key_dim, value_dim] is changed; k, erase, insert [heads, key_dim], v [heads, value_dim],
    factor (exp(decay)) [heads, 1 or key_dim]."""
    erased = None if erase is None else read(s, erase)
    s *= factor[:, :, None]
    s += (k * (1 - factor) if complement else k)[:, :, None] * v[:, None, :]
    if insert is not None and erased is not None:
        s += insert[:, :, None] * erased[:, None, :]


@rule(LinearAttention)
def _linear_attention(exe: ReferenceExecutable, op: LinearAttention, batch: Batch, state: State) -> F32:
    heads = [op.key_head(h) for h in range(op.n_heads)]
    q = state[op.q.id].reshape(-1, op.n_heads, op.key_dim)
    k, v = (state[value.id].reshape(len(q), op.n_key_heads, -1)[:, heads] for value in (op.k, op.v))
    erase, insert = (
        [None] * len(q) if value is None else state[value.id].reshape(q.shape) for value in (op.erase, op.insert)
    )
    decay = np.array(op.decays, np.float32)[None, :, None] if op.decay is None else state[op.decay.id].reshape(q.shape)
    factor = np.broadcast_to(np.exp(decay), (len(q), op.n_heads, decay.shape[-1]))

    def advance(rows: slice, s: F32) -> F32:
        out = np.empty((rows.stop - rows.start, op.n_heads, op.value_dim), np.float32)
        for i, t in enumerate(range(rows.start, rows.stop)):
            if op.before:
                out[i] = read(s, q[t])
            take_in(s, k[t], v[t], factor[t], erase[t], insert[t], op.complement)
            if not op.before:
                out[i] = read(s, q[t])
        return out.reshape(len(out), -1) * np.float32(op.scale)

    return scan(exe, op, batch, advance)
