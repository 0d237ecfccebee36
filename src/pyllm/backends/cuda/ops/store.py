"""Keys and values that other ops read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.backends.cuda import kv
from pyllm.backends.cuda.rules import emit
from pyllm.program.ops.store import StoreKV

if TYPE_CHECKING:
    from pyllm.backends.cuda.lowering import Lowering, Node


@emit(StoreKV)
def store(low: Lowering, node: Node, op: StoreKV) -> None:
    k, v = low.f32(op.k), low.f32(op.v)
    low.add(node, kv.store(low.arrays, op.reader, low.options, low.caches[op.cache], q=k, k=k, v=v, rotated_q=k))
    node.f32 = k
