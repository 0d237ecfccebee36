"""Keys and values that other ops read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.backends.cpu import attention
from pyllm.backends.cpu.rules import emit
from pyllm.program.ops.store import StoreKV

if TYPE_CHECKING:
    from pyllm.backends.cpu.lowering import Lowering
    from pyllm.backends.cpu.values import Node


@emit(StoreKV)
def store(low: Lowering, node: Node, op: StoreKV) -> None:
    o = low.options
    plan = attention.plan(op.reader, page_size=o.page_size, dtype=o.kv_dtype, max_generated=o.max_seqs + o.max_drafts)
    low.table.need_scratch(plan.scratch_bytes)
    k, v = low.f32(op.k), low.f32(op.v)
    args = plan.store_args(q=k, k=k, v=v, cache=low.caches[op.cache], scratch=low.table.scratch)
    low.table.add(plan.store_kernel, args, label="store kv")
    node.f32 = k
