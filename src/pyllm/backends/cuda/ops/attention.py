"""Attention in a program's launches: norms and rotations of queries and keys are fused with the store of keys and
values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.backends.cuda import attention, kv
from pyllm.backends.cuda.kv import HeadNorm
from pyllm.backends.cuda.launch import View
from pyllm.backends.cuda.rules import emit
from pyllm.backends.plan.groups import Attend
from pyllm.program.ops.attention import Attention
from pyllm.program.ops.norm import RMSNorm

if TYPE_CHECKING:
    from pyllm.backends.cuda.lowering import Lowering, Node


@emit(Attention)
def attend(low: Lowering, node: Node, op: Attention) -> None:
    group, cache = low.groups.of(op.out), low.caches[op.cache]
    assert isinstance(group, Attend)
    q, k, v = low.f32(group.q.x), low.f32(group.k.x) if group.k else None, low.f32(op.v) if op.v else None
    rope, q_norm, k_norm = group.rope, group.q.norm, group.k.norm if group.k else None
    rotated_q = View.room(low.most(node), group.q.x.width) if rope or q_norm else q
    if k or rotated_q != q:
        store = kv.store(
            low.arrays, op, low.options, cache, q=q, k=k, v=v, rotated_q=rotated_q, rope=rope,
            inv_freq=low.weights.constant(rope.inv_freq) if rope else None,
            q_norm=_head_norm(low, q_norm), k_norm=_head_norm(low, k_norm),
        )  # fmt: skip
        low.add(node, store)
    slopes = low.weights.constant(op.slopes) if op.slopes else None
    if op.biases is not None:
        slopes = low.weights.vector([(op.biases, low.weights[op.biases].n_elements)])
    sinks = low.weights.vector([(op.sinks, op.n_heads)]) if op.sinks else None
    out = low.new_forms(node, low.wants(node))
    low.add(node, attention.attend(low.arrays, op, low.options, cache, rotated_q, out, slopes, sinks, low.facts))


def _head_norm(low: Lowering, op: RMSNorm | None) -> HeadNorm | None:
    return HeadNorm(*low.weights.by_group(op.weight, op.group), op.eps) if op else None
