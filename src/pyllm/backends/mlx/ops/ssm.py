"""Scans of selective state spaces."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import mlx.core as mx

from pyllm.backends.mlx.ops.gate import ACTIVATIONS
from pyllm.backends.mlx.recurrent import CHUNK, CHUNK_BY_ROW, attend, scan
from pyllm.backends.mlx.rules import rule
from pyllm.program.ops.ssm import SSMScan1, SSMScan2

if TYPE_CHECKING:
    from pyllm.backends.mlx.lowering import Step


def scan_1(
    state: mx.array, x: mx.array, step: mx.array, b: mx.array, c: mx.array, a: mx.array
) -> tuple[mx.array, mx.array]:
    """A chunk of Mamba 1. state [n_seqs, state_dim, width]; x, step [n_seqs, tokens, width], b, c [n_seqs, tokens,
    state_dim], a [state_dim, width] → (out like x, state).

    A token's state is an affine function of the one before it. Functions of 1, 2, 4, … tokens are composed, all at
    once.
    """
    factors = mx.exp(step[:, :, None] * a)
    states = b[..., None] * (step * x)[:, :, None]
    states = mx.concatenate([states[:, :1] + factors[:, :1] * state[:, None], states[:, 1:]], axis=1)
    back = 1
    while back < x.shape[1]:
        sums = states[:, back:] + factors[:, back:] * states[:, :-back]
        states = mx.concatenate([states[:, :back], sums], axis=1)
        factors = mx.concatenate([factors[:, :back], factors[:, back:] * factors[:, :-back]], axis=1)
        back *= 2
    return (c[:, :, None] @ states)[:, :, 0], states[:, -1]


@rule(SSMScan1)
def _scan_1(s: Step, op: SSMScan1) -> mx.array:
    x, step, b, c = s[op.x], ACTIVATIONS["softplus"](s[op.dt]), s[op.b], s[op.c]
    advance = partial(scan_1, a=s.lowering.vectors[op.a].T)
    out = scan(s, op, advance, CHUNK_BY_ROW, x, step, b, c)
    return out + s.lowering.vectors[op.d] * x


@rule(SSMScan2)
def _scan_2(s: Step, op: SSMScan2) -> mx.array:
    n, weights, bias = len(s[op.x]), s.lowering.vectors, s.vector(op.dt_bias)
    x = s[op.x].reshape(n, op.n_heads, op.head_dim)
    b, c = (
        mx.repeat(s[v].reshape(n, op.n_groups, op.state_dim), op.n_heads // op.n_groups, axis=1) for v in (op.b, op.c)
    )
    dt = s[op.dt] if bias is None else s[op.dt] + bias.reshape(-1)
    step = ACTIVATIONS["softplus"](dt)[..., None]
    out = scan(s, op, attend, CHUNK, c, b, step * x, step * weights[op.a].reshape(-1, 1))
    return out + (weights[op.d].reshape(-1, 1) * x).reshape(n, -1)
