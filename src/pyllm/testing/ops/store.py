"""Keys and values that other ops read: cases."""

from __future__ import annotations

from typing import Any

from pyllm.program import Value
from pyllm.program.ops.attention import Attention
from pyllm.program.ops.elementwise import Add
from pyllm.program.ops.linear import Linear
from pyllm.program.ops.store import StoreKV
from pyllm.testing.models import Builder, Record


def _store(n_heads: int, n_kv_heads: int, head_dim: int, v_head_dim: int, *, reads_keys: bool = False) -> Record:
    """Attention to what another op stores, plus its keys."""

    def record(b: Builder, x: Value) -> Value:
        sizes: dict[str, Any] = {"n_kv_heads": n_kv_heads, "head_dim": head_dim, "v_head_dim": v_head_dim}
        widths = {"q": n_heads * head_dim, "k": n_kv_heads * head_dim, "v": n_kv_heads * v_head_dim}
        q, k, v = (b(Linear(x=x, weight=b.t(name, rows, x.width))) for name, rows in widths.items())
        keys = b(StoreKV(k=k, v=v, **sizes))
        y = b(Attention(q=q, k=None, v=None, n_heads=n_heads, scale=head_dim**-0.5, cache=0, **sizes))
        return b(Add(a=y, b=keys)) if reads_keys else y

    return record


CASES: dict[str, Record] = {
    "plain": _store(4, 4, 32, 32),
    "grouped": _store(6, 2, 32, 48),
    "read": _store(2, 2, 32, 32, reads_keys=True),
}
