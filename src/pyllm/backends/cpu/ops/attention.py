"""Attention in a table: norms and rotations of queries and keys are fused with the store of keys and values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.backends.cpu import attention
from pyllm.backends.cpu.attention import NO_NORM, HeadNorm, RopeTable
from pyllm.backends.cpu.ops.rope import rope_table
from pyllm.backends.cpu.rules import emit
from pyllm.backends.cpu.table import View
from pyllm.backends.plan.groups import Attend
from pyllm.program.ops.attention import Attention
from pyllm.program.ops.norm import RMSNorm

if TYPE_CHECKING:
    from pyllm.backends.cpu.lowering import Lowering
    from pyllm.backends.cpu.values import Node


@emit(Attention)
def attend(low: Lowering, node: Node, op: Attention) -> None:
    o, group = low.options, low.groups.of(op.out)
    assert isinstance(group, Attend)
    n_most = o.max_seqs + o.max_drafts
    plan = attention.plan(op, page_size=o.page_size, dtype=o.kv_dtype, max_generated=n_most)
    rope = RopeTable.of(group.rope) if group.rope else None
    q, k, v = low.f32(group.q.x), low.f32(group.k.x) if group.k else None, low.f32(op.v) if op.v else None
    q_norm, k_norm = group.q.norm, group.k.norm if group.k else None
    angles = rope_table(low, rope) if rope else None
    cache = low.caches[op.cache]
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
    slopes = low.weights.constant(op.slopes) if op.slopes else None
    biases, far = None, 0
    if op.biases is not None:
        biases, far = View(*low.weights.edged(op.biases, 16)), low.weights[op.biases].shape[1] // 2
    sinks = low.weights.vector([(op.sinks, op.n_heads)])[0] if op.sinks else None
    y = low.new_f32(node)
    low.table.add(
        plan.kernel,
        plan.args(
            q=q, y=y, cache=cache, slopes=slopes, biases=biases, far=far, sinks=sinks, scratch=scratch,
            parts=View(low.shared, 0, plan.tickets_bytes), tickets=low.shared,
        ),
        label="attention",
    )  # fmt: skip


def _head_norm(low: Lowering, op: RMSNorm | None) -> HeadNorm:
    if op is None:
        return NO_NORM
    place, step = low.weights.by_group(op.weight, op.group)
    return HeadNorm(place, op.eps, 4 * step)
