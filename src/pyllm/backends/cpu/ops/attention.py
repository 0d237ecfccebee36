"""Attention in a table: rotations and norms of queries and keys go into the op that stores keys and values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.backends.cpu import attention
from pyllm.backends.cpu.attention import NO_NORM, HeadNorm, RopeTable
from pyllm.backends.cpu.ops.rope import rope_table
from pyllm.backends.cpu.rules import emit
from pyllm.backends.cpu.table import View
from pyllm.program import Value
from pyllm.program.ops.attention import Attention
from pyllm.program.ops.norm import RMSNorm
from pyllm.program.ops.rope import Rope

if TYPE_CHECKING:
    from pyllm.backends.cpu.lowering import Lowering
    from pyllm.backends.cpu.values import Node


def _source(low: Lowering, v: Value, head_dim: int) -> tuple[Rope | None, RMSNorm | None, Value]:
    """The rotation and the norm of each head that lead to v and that nothing else reads, and what they start from."""
    rope = norm = None
    node = low.node(v)
    if isinstance(node.op, Rope) and node.op.head_dim == head_dim and node.f32 is None and len(node.readers) == 1:
        rope, node = node.op, low.node(node.op.x)
    if isinstance(node.op, RMSNorm) and node.op.group == head_dim and node.f32 is None and len(node.readers) == 1:
        norm, node = node.op, low.node(node.op.x)
    # Rotation is in place, so the start must not be read by anybody else either.
    if (rope or norm) and len(node.readers) > 1:
        return None, None, v
    return rope, norm, node.op.out


@emit(Attention)
def attend(low: Lowering, node: Node, op: Attention) -> None:
    o = low.options
    plan = attention.plan(op, page_size=o.page_size, dtype=o.kv_dtype, n_threads=o.n_threads)
    q_rope, q_norm, q_value = _source(low, op.q, op.head_dim)
    rope, k, v, k_norm = RopeTable.of(q_rope) if q_rope else None, None, None, None
    if op.k is not None and op.v is not None:
        k_rope, k_norm, k_value = _source(low, op.k, op.head_dim)
        if rope != (RopeTable.of(k_rope) if k_rope else None):
            rope, q_norm, k_norm, q_value, k_value = None, None, None, op.q, op.k
        k, v = low.f32(k_value), low.f32(op.v)
    q = low.f32(q_value)
    angles = rope_table(low, rope) if rope else None
    cache = low.caches[op.cache]
    low.page_bytes[op.cache] = plan.layout.page_bytes
    low.shared.n_bytes = max(low.shared.n_bytes, plan.shared_bytes)
    low.table.need_scratch(plan.scratch_bytes)
    scratch = low.table.scratch
    if k or rope or q_norm:
        low.table.add(
            plan.store_kernel,
            plan.store_args(
                q=q, k=k, v=v, cache=cache, rope=rope, table=angles, q_norm=_head_norm(low, q_norm),
                k_norm=_head_norm(low, k_norm), scratch=scratch,
            ),
            label="store kv" if k else "turn queries",
        )  # fmt: skip
    sinks = low.weights.vector([(op.sinks, op.n_heads)])[0] if op.sinks else None
    y = low.new_f32(node)
    low.table.add(
        plan.kernel,
        plan.args(
            q=q, y=y, cache=cache, sinks=sinks, scratch=scratch, parts=View(low.shared, 0, plan.tickets_bytes),
            tickets=low.shared,
        ),
        label="attention",
    )  # fmt: skip


def _head_norm(low: Lowering, op: RMSNorm | None) -> HeadNorm:
    if op is None:
        return NO_NORM
    if op.weight is None:
        return HeadNorm(None, op.eps)
    columns = low.weights[op.weight].n_elements
    place, _ = low.weights.vector([(op.weight, columns)])
    return HeadNorm(place, op.eps, 4 * op.group if columns > op.group else 0)
