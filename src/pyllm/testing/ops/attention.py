"""Attention over a KV cache: cases."""

from __future__ import annotations

from typing import Any

from pyllm.program import Value
from pyllm.program.ops.attention import Attention, alibi_slopes
from pyllm.program.ops.elementwise import Add
from pyllm.program.ops.linear import Linear
from pyllm.testing.models import Builder, Record


def _attention(
    n_heads: int,
    n_kv_heads: int,
    head_dim: int,
    v_head_dim: int = 0,
    *,
    sinks: bool = False,
    far: int = 0,
    **options: Any,
) -> Record:
    v_head_dim = v_head_dim or head_dim

    def record(b: Builder, x: Value) -> Value:
        sizes = {"q": n_heads * head_dim, "k": n_kv_heads * head_dim, "v": n_kv_heads * v_head_dim}
        q, k, v = (b(Linear(x=x, weight=b.t(name, rows, x.width))) for name, rows in sizes.items())
        return b(Attention(
            q=q, k=k, v=v, n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=head_dim, v_head_dim=v_head_dim,
            scale=head_dim**-0.5, sinks=b.t("attn_sinks.weight", n_heads) if sinks else None,
            biases=b.t("biases", n_heads, 2 * far + 1) if far else None, **options,
        ))  # fmt: skip

    return record


def _shared(b: Builder, x: Value) -> Value:
    """Two attention ops; the second reads the keys and values of the first, with its own queries and window."""
    sizes: dict[str, Any] = {"n_heads": 4, "n_kv_heads": 2, "head_dim": 32, "v_head_dim": 16, "scale": 0.2}
    q, k, v = (b(Linear(x=x, weight=b.t(name, rows, x.width))) for name, rows in (("q", 128), ("k", 64), ("v", 32)))
    first = b(Attention(q=q, k=k, v=v, **sizes))
    q = b(Linear(x=first, weight=b.t("q2", 128, first.width)))
    return b(Add(a=first, b=b(Attention(q=q, k=None, v=None, window=6, cache=0, **sizes))))


def _two_whole(b: Builder, x: Value) -> Value:
    """Two attention ops that use one cache, one after the other."""
    for i, window in enumerate((0, 8)):
        q, k, v = (b(Linear(x=x, weight=b.t(f"{c}{i}", 64, x.width))) for c in "qkv")
        x = b(Attention(
            q=q, k=k, v=v, n_heads=2, n_kv_heads=2, head_dim=32, v_head_dim=32, scale=0.2, reach="whole", window=window
        ))  # fmt: skip
    return x


CASES: dict[str, Record] = {
    "plain": _attention(4, 4, 32),
    "grouped": _attention(8, 2, 16),
    "one_kv_head": _attention(6, 1, 32),
    "wide": _attention(2, 1, 128),
    "head_of_80": _attention(2, 2, 80),
    "window": _attention(4, 2, 32, window=7),
    "window_of_1": _attention(4, 2, 32, window=1),
    "softcap": _attention(4, 2, 32, softcap=2.0),
    "sinks": _attention(4, 2, 32, sinks=True),
    "chunked": _attention(4, 2, 32, reach="chunked", window=9),
    "slopes": _attention(6, 2, 32, slopes=alibi_slopes(6, 8.0)),
    "biases": _attention(6, 2, 32, far=9),
    "biases_far": _attention(2, 2, 32, far=100, window=20),
    "biases_whole": _attention(3, 3, 32, far=4, reach="whole"),
    "whole": _attention(4, 2, 32, reach="whole"),
    "whole_window": _attention(4, 2, 32, reach="whole", window=12),
    "whole_slopes": _attention(3, 1, 48, reach="whole", slopes=alibi_slopes(3, 8.0), sinks=True),
    "two_whole": _two_whole,
    "all_options": _attention(4, 2, 64, sinks=True, window=9, softcap=3.0),
    "narrow_values": _attention(4, 2, 32, 16),
    "shared_keys_and_values": _shared,
}
