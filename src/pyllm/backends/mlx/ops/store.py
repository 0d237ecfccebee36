"""Keys and values that other ops read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx

from pyllm.backends.mlx import attention as att
from pyllm.backends.mlx.rules import rule
from pyllm.program.ops.store import StoreKV

if TYPE_CHECKING:
    from pyllm.backends.mlx.lowering import Step


@rule(StoreKV)
def _store_kv(s: Step, op: StoreKV) -> mx.array:
    for cache, x in zip(s.caches[op.cache], (op.k, op.v), strict=True):
        att.store(cache, s.inputs["slots"], s[x])
    return s[op.k]
