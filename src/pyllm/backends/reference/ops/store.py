"""Keys and values that other ops read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.backends.reference.ops.attention import store
from pyllm.backends.reference.rules import F32, State, rule
from pyllm.program.ops.store import StoreKV

if TYPE_CHECKING:
    from pyllm.backends.base import Batch
    from pyllm.backends.reference.backend import ReferenceExecutable


@rule(StoreKV)
def _store_kv(exe: ReferenceExecutable, op: StoreKV, batch: Batch, state: State) -> F32:
    k, v = state[op.k.id], state[op.v.id]
    for seq, (first, n) in enumerate(batch.spans[: batch.n_seqs].tolist()):
        pages, position = batch.page_tables[seq], int(batch.positions[first])
        store(k[first : first + n], exe.keys[op.cache], pages, position)
        store(v[first : first + n], exe.values[op.cache], pages, position)
    return k
