"""Attention in a program's launches: norms and rotations of queries and keys go into what stores keys and values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.backends.cuda import attention, kv
from pyllm.backends.cuda.kv import HeadNorm
from pyllm.backends.cuda.launch import View
from pyllm.backends.cuda.rules import emit
from pyllm.program import Value
from pyllm.program.ops.attention import Attention
from pyllm.program.ops.norm import RMSNorm
from pyllm.program.ops.rope import Rope

if TYPE_CHECKING:
    from pyllm.backends.cuda.lowering import Lowering, Node


@emit(Attention)
def attend(low: Lowering, node: Node, op: Attention) -> None:
    q_rope, q_norm, q_value = _source(low, op.q, op.head_dim)
    k = v = k_norm = None
    if op.k is not None and op.v is not None:
        k_rope, k_norm, k_value = _source(low, op.k, op.head_dim)
        if (q_norm is None) != (k_norm is None) or not _alike(q_rope, k_rope):
            q_rope, q_norm, q_value, k_norm, k_value = None, None, op.q, None, op.k
        k, v = low.f32(k_value), low.f32(op.v)
    q, cache = low.f32(q_value), low.caches[op.cache]
    cache.n_bytes = kv.cache_bytes(low.program.kv[op.cache], low.options)
    turned = View.room(low.most(node), q_value.width) if q_rope or q_norm else q
    if k or turned != q:
        store = kv.store(
            low.arrays, op, low.options, cache, q=q, k=k, v=v, turned=turned, rope=q_rope,
            inv_freq=low.weights.constant(q_rope.inv_freq) if q_rope else None,
            q_norm=_head_norm(low, q_norm), k_norm=_head_norm(low, k_norm),
        )  # fmt: skip
        low.add(node, store)
    sinks = low.weights.vector([(op.sinks, op.n_heads)]) if op.sinks else None
    out = low.new_forms(node, low.wants(node))
    low.add(node, attention.attend(low.arrays, op, low.options, cache, turned, out, sinks, low.facts))


def _source(low: Lowering, v: Value, head_dim: int) -> tuple[Rope | None, RMSNorm | None, Value]:
    """The rotation and the norm of each head that lead to v and that nothing else reads, and what they start from."""
    rope = norm = None
    node = low.node(v)
    if isinstance(node.op, Rope) and node.op.head_dim == head_dim and _is_free(low, node):
        rope, node = node.op, low.node(node.op.x)
    if isinstance(node.op, RMSNorm) and node.op.group == head_dim and _is_free(low, node):
        norm, node = node.op, low.node(node.op.x)
    return rope, norm, node.value


def _is_free(low: Lowering, node: Node) -> bool:
    return not node.computed and len(node.readers) == 1 and not low.is_sent(node)


def _alike(a: Rope | None, b: Rope | None) -> bool:
    """Whether one table of angles serves both."""
    if a is None or b is None:
        return a is b
    return (a.inv_freq, a.mscale, a.interleaved) == (b.inv_freq, b.mscale, b.interleaved)


def _head_norm(low: Lowering, op: RMSNorm | None) -> HeadNorm | None:
    if op is None or op.weight is None:
        return HeadNorm(None, 0, op.eps) if op else None
    columns = low.weights[op.weight].n_elements
    step = op.group if columns > op.group else 0
    return HeadNorm(low.weights.vector([(op.weight, columns)]), step, op.eps)
