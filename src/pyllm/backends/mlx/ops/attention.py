"""Attention over the slots of sequences."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx

from pyllm.backends.mlx import attention as att
from pyllm.backends.mlx.rules import rule
from pyllm.program.ops.attention import Attention

if TYPE_CHECKING:
    from pyllm.backends.mlx.lowering import Step


@rule(Attention)
def _attention(s: Step, op: Attention) -> mx.array:
    keys, values = s.caches[op.cache]
    q = s[op.q]
    if op.k is not None and op.v is not None:
        att.store(keys, s.inputs["slots"], s[op.k])
        att.store(values, s.inputs["slots"], s[op.v])
    dtype = mx.float16 if s.lowering.half and keys.dtype == mx.float16 else mx.float32
    sinks, biases, positions, out = s.vector(op.sinks), s.vector(op.biases), s.inputs["positions"], []
    for i, (group, mask) in enumerate(zip(s.reads[op.sight], s.masks(op.sight), strict=True)):
        slots = s.inputs.get(att.array("slots", op.sight, i))
        added = None
        if op.slopes or op.biases:
            distance = att.distances(group, s.inputs.get(att.array("keys", op.sight, i)), positions)
            added = att.by_distance(op, distance, biases)
        k, v = (att.read(cache, group, slots).astype(dtype) for cache in (keys, values))
        rows = q[group.first : group.first + group.n_seqs * group.n_tokens]
        rows = rows.reshape(group.n_seqs, group.n_tokens, -1).astype(dtype)
        out.append(att.attention(op, rows, k, v, mask, sinks, added).astype(mx.float32))
    return out[0] if len(out) == 1 else mx.concatenate(out)
