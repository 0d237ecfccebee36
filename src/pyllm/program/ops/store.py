"""Keys and values that other ops read."""

from __future__ import annotations

from dataclasses import replace
from typing import Self

from pyllm.errors import ModelError
from pyllm.program.op import Cached, Shapes
from pyllm.program.ops.attention import Attention
from pyllm.program.values import KVSpec, Value
from pyllm.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreKV(Cached):
    """Stores k and v in KV cache `cache` at each token's position, for attention that has none of its own; out = k.

    k [tokens, n_kv_heads * head_dim], v [tokens, n_kv_heads * v_head_dim].
    """

    k: Value
    v: Value
    n_kv_heads: int
    head_dim: int
    v_head_dim: int

    @property
    def spec(self) -> KVSpec:
        return KVSpec(self.n_kv_heads, self.head_dim, self.v_head_dim)

    @property
    def reader(self) -> Attention:
        """Attention that stores the same in the same cache."""
        return Attention(
            q=self.k,
            k=self.k,
            v=self.v,
            n_heads=self.n_kv_heads,
            n_kv_heads=self.n_kv_heads,
            head_dim=self.head_dim,
            v_head_dim=self.v_head_dim,
            scale=1.0,
            cache=self.cache,
        )

    def settle(self, shapes: Shapes) -> Self:
        if self.cache >= 0:
            return self
        shapes.states.append(self.spec)
        return replace(self, cache=sum(isinstance(spec, KVSpec) for spec in shapes.states) - 1)

    def infer(self, shapes: Shapes) -> int:
        caches = [spec for spec in shapes.states if isinstance(spec, KVSpec)]
        if not 0 <= self.cache < len(caches) or caches[self.cache] != self.spec:
            raise ModelError(f"keys and values do not fit into KV cache {self.cache}")
        wanted = self.n_kv_heads * self.head_dim, self.n_kv_heads * self.v_head_dim
        if (self.k.width, self.v.width) != wanted:
            raise ModelError(
                f"keys and values of {self.k.width} and {self.v.width} columns do not make {self.n_kv_heads} heads of "
                f"{self.head_dim} and {self.v_head_dim} columns"
            )
        shapes.every_token("a KV cache needs every token", self.k, self.v)
        return self.k.width
