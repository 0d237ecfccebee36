"""Scans of selective state spaces, token by token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyllm.backends.reference.recurrent import scan
from pyllm.backends.reference.rules import F32, State, rule
from pyllm.program.ops.ssm import SSMScan1, SSMScan2

if TYPE_CHECKING:
    from pyllm.backends.base import Batch
    from pyllm.backends.reference.backend import ReferenceExecutable


def step_1(s: F32, x: F32, step: F32, b: F32, c: F32, a: F32) -> F32:
    """One token. s [state_dim, width] is changed; x, step [width], b, c [state_dim], a [width, state_dim] → [width]."""
    s *= np.exp(step * a.T)
    s += b[:, None] * (step * x)
    return c @ s


def step_2(s: F32, x: F32, step: F32, b: F32, c: F32, a: F32) -> F32:
    """One token. s [heads, state_dim, head_dim] is changed; x [heads, head_dim], step, a [heads], b, c [heads,
    state_dim] → [heads, head_dim]."""
    s *= np.exp(step * a)[:, None, None]
    s += b[:, :, None] * (step[:, None] * x)[:, None, :]
    return np.einsum("hnd,hn->hd", s, c)


@rule(SSMScan1)
def _scan_1(exe: ReferenceExecutable, op: SSMScan1, batch: Batch, state: State) -> F32:
    x, b, c = (state[v.id] for v in (op.x, op.b, op.c))
    a, d = (exe.weights.whole(weight) for weight in (op.a, op.d))
    steps = np.logaddexp(state[op.dt.id], np.float32(0))

    def advance(rows: slice, s: F32) -> F32:
        return np.stack([step_1(s, x[t], steps[t], b[t], c[t], a) for t in range(rows.start, rows.stop)])

    return scan(exe, op, batch, advance) + d * x


@rule(SSMScan2)
def _scan_2(exe: ReferenceExecutable, op: SSMScan2, batch: Batch, state: State) -> F32:
    n, groups = op.n_heads, [op.group(h) for h in range(op.n_heads)]
    x = state[op.x.id].reshape(-1, n, op.head_dim)
    b, c = (state[v.id].reshape(-1, op.n_groups, op.state_dim)[:, groups] for v in (op.b, op.c))
    a, d = (exe.weights.whole(weight).reshape(n) for weight in (op.a, op.d))
    bias = np.float32(0) if op.dt_bias is None else exe.weights.whole(op.dt_bias).reshape(n)
    steps = np.logaddexp(state[op.dt.id] + bias, np.float32(0))

    def advance(rows: slice, s: F32) -> F32:
        out = [step_2(s, x[t], steps[t], b[t], c[t], a) for t in range(rows.start, rows.stop)]
        return np.stack(out).reshape(len(out), -1)

    return scan(exe, op, batch, advance) + (d[:, None] * x).reshape(len(x), -1)
