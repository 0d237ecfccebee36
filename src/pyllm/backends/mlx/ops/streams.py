"""Sums of streams."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx

from pyllm.backends.mlx.rules import rule
from pyllm.program.ops.streams import StreamMix

if TYPE_CHECKING:
    from pyllm.backends.mlx.lowering import Step


@rule(StreamMix)
def _stream_mix(s: Step, op: StreamMix) -> mx.array:
    x, m, n, weight = s[op.x], op.n_out, op.n_in, s.vector(op.weight)
    if op.y:
        x = mx.concatenate([x, s[op.y]], axis=1)
    coefs = mx.zeros((len(x), m, n)) if op.coefs is None else s[op.coefs].reshape(-1, m, n)
    if weight is not None:
        coefs = coefs + weight.reshape(m, n)
    streams, out = x.reshape(len(x), 1, n, op.width), coefs[..., None]
    return (streams * out).sum(axis=2).reshape(len(x), -1)
