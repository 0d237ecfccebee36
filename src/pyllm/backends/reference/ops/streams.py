"""Sums of streams."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyllm.backends.reference.rules import F32, State, rule
from pyllm.program.ops.streams import StreamMix

if TYPE_CHECKING:
    from pyllm.backends.base import Batch
    from pyllm.backends.reference.backend import ReferenceExecutable


@rule(StreamMix)
def _stream_mix(exe: ReferenceExecutable, op: StreamMix, batch: Batch, state: State) -> F32:
    x, m, n = state[op.x.id], op.n_out, op.n_in
    if op.y:
        x = np.concatenate([x, state[op.y.id]], axis=1)
    coefs = np.zeros((len(x), m, n), np.float32)
    if op.coefs:
        coefs += state[op.coefs.id].reshape(-1, m, n)
    weight = exe.weights.whole(op.weight)
    if weight is not None:
        coefs += weight
    out = np.einsum("tmn,tnw->tmw", coefs, x.reshape(len(x), n, op.width), dtype=np.float64)
    return out.reshape(len(x), -1).astype(np.float32)
