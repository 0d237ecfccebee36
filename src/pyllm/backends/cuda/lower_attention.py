"""Attention in a program's launches: norms and rotations of queries and keys go into what stores keys and values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.backends.cuda import attention
from pyllm.backends.cuda.attention import Attend, Cache, HeadNorm, Heads, Turn
from pyllm.backends.cuda.launch import View
from pyllm.program import Attention, RMSNorm, Rope, Value

if TYPE_CHECKING:
    from pyllm.backends.cuda.lowering import Lowering, Node


def lower_rope(low: Lowering, node: Node, op: Rope) -> None:
    heads = Heads(low.f32(op.x), op.out.width // op.head_dim)
    low.add(node, attention.rotate(low.arrays, heads, low.new_f32(node), op.head_dim, _turn(low, op)))


def lower_attention(low: Lowering, node: Node, op: Attention) -> None:
    q_rope, q_norm, q_value = _source(low, op.q, op.head_dim)
    k_rope, k_norm, k_value = _source(low, op.k, op.head_dim)
    if (q_norm is None) != (k_norm is None) or not _alike(q_rope, k_rope):
        q_rope, q_norm, q_value, k_norm, k_value = None, None, op.q, None, op.k
    q, k, v = low.f32(q_value), low.f32(k_value), low.f32(op.v)
    cache = Cache(low.program.kv[op.cache], low.options, low.caches[op.cache])
    cache.buffer.n_bytes = attention.cache_bytes(cache.spec, low.options)
    keys = Heads(k, op.n_kv_heads, _head_norm(low, k_norm))
    if q_rope or q_norm:
        turn = _turn(low, q_rope) if q_rope else None
        turned = View.room(low.most(node), q_value.width)
        queries = Heads(q, op.n_heads, _head_norm(low, q_norm))
        low.add(node, attention.store(low.arrays, cache, keys, v, turn, queries, turned))
    else:
        turned = q
        low.add(node, attention.store(low.arrays, cache, keys, v))
    sinks = low.weights.vector([(op.sinks, op.n_heads)]) if op.sinks else None
    attend = Attend(low.arrays, op, cache, turned, sinks, low.facts.n_sm, low.facts.max_shared)
    low.add(node, attention.attend(attend, low.new_forms(node, low.wants(node))))


def _turn(low: Lowering, op: Rope) -> Turn:
    return Turn(low.weights.constant(op.inv_freq), len(op.inv_freq), op.mscale, op.interleaved)


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
        return HeadNorm(None, op.eps) if op else None
    columns = low.weights[op.weight].n_elements
    step = op.group if columns > op.group else 0
    return HeadNorm(low.weights.vector([(op.weight, columns)]), op.eps, step)
