"""Attention over a KV cache."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Self

from pyllm.errors import ModelError
from pyllm.program.op import Op, Shapes
from pyllm.program.values import KVSpec, Value, Weight
from pyllm.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention(Op):
    """Stores k and v in KV cache `cache` at each token's position, then out = causal attention of q over its sequence.

    Without k and v it reads the cache of an earlier op, which has the same heads and sizes (keys and values shared
    between layers); the window is its own.
    q [tokens, n_heads * head_dim], k [tokens, n_kv_heads * head_dim], v [tokens, n_kv_heads * v_head_dim],
    out [tokens, n_heads * v_head_dim]. Head h reads KV head h * n_kv_heads // n_heads. A token at position p sees
    positions max(0, p - window + 1) .. p (window 0: all). Scores are (q . k) * scale, then softcap * tanh(. / softcap)
    if softcap is not 0. `sinks` [n_heads] names logits that join each head's softmax without a value.
    """

    keeps_state: ClassVar[bool] = True

    q: Value
    k: Value | None
    v: Value | None
    n_heads: int
    n_kv_heads: int
    head_dim: int
    v_head_dim: int
    scale: float
    window: int = 0
    softcap: float = 0.0
    sinks: Weight | None = None
    cache: int = -1
    """Number of its KV cache; -1: a new one, set on recording. Without k and v: the earlier op's."""

    def settle(self, shapes: Shapes) -> Self:
        if self.k is None or self.cache >= 0:
            return self
        shapes.states.append(KVSpec(self.n_kv_heads, self.head_dim, self.v_head_dim, self.window))
        return replace(self, cache=sum(isinstance(spec, KVSpec) for spec in shapes.states) - 1)

    def infer(self, shapes: Shapes) -> int:
        heads, kv_heads, q, k, v = self.n_heads, self.n_kv_heads, self.q, self.k, self.v
        if min(heads, kv_heads, self.head_dim, self.v_head_dim) < 1 or heads % kv_heads:
            raise ModelError(f"{heads} heads cannot share {kv_heads} key/value heads")
        wanted = heads * self.head_dim, kv_heads * self.head_dim, kv_heads * self.v_head_dim
        if k is None or v is None:
            self._check_cache(shapes)
            k, v = (Value(-1, width) for width in wanted[1:])
        if (q.width, k.width, v.width) != wanted:
            raise ModelError(
                f"queries, keys and values of {q.width}, {k.width} and {v.width} columns do not make "
                f"{heads} and {kv_heads} heads of {self.head_dim} and {self.v_head_dim} columns"
            )
        shapes.every_token("attention needs every token", q, k, v)
        shapes.require(self.sinks, (heads,))
        return heads * self.v_head_dim

    def _check_cache(self, shapes: Shapes) -> None:
        caches = [spec for spec in shapes.states if isinstance(spec, KVSpec)]
        spec = caches[self.cache] if 0 <= self.cache < len(caches) else None
        sizes = self.n_kv_heads, self.head_dim, self.v_head_dim
        if self.k is not self.v or spec is None or sizes != (spec.n_kv_heads, spec.head_dim, spec.v_head_dim):
            raise ModelError(f"attention without keys and values of its own cannot read KV cache {self.cache}: {spec}")
