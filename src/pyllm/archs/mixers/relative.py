"""Attention with biases by distance in place of positions, and to a source (T5, arXiv:1910.10683)."""

from __future__ import annotations

import math
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pyllm.archs.graph import Graph
from pyllm.archs.hparams import HParams
from pyllm.errors import ModelError
from pyllm.program import KVSpec, Value, Weight
from pyllm.program.ops.attention import Attention
from pyllm.program.ops.store import StoreKV
from pyllm.records import dataclass

FAR = 128
"""Distance in positions from which all keys have one bias."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RelativeAttention:
    """attn_o(attention of attn_q, attn_k and attn_v). Scores are not scaled; they have a bias by head and bucket of
    distances, `attn_rel_b` of the layer or of the first one."""

    first: str
    """Prefix of the names of the first layer's tensors."""
    sizes: KVSpec
    n_buckets: int
    reach: str
    """What a token sees, of `REACHES` of the op."""
    cache: int = -1
    """Number of its KV cache; -1: one of its own."""

    @classmethod
    def read(cls, hp: HParams, first: str, reach: str, cache: int = -1) -> Self:
        """The mixer of any layer, with the file's sizes."""
        n_buckets = hp.integer("attention.relative_buckets_count")
        if n_buckets not in range(4, 2 * FAR, 2):
            raise ModelError(f"{hp.arch} has {n_buckets} buckets of distances; even numbers from 4 to 254 would work")
        return cls(first=first, sizes=heads_of(hp), n_buckets=n_buckets, reach=reach, cache=cache)

    def __call__(self, g: Graph, blk: str, x: Value) -> Value:
        q, k, v = (g.linear(x, f"{blk}attn_{c}", width) for c, width in _widths(self.sizes).items())
        y = g.rec(_attention(self.sizes, q, k, v, self.reach, self.cache, self._biases(g, blk)))
        return g.linear(y, f"{blk}attn_o", g.hp.n_embd)

    def _biases(self, g: Graph, blk: str) -> Weight:
        """[n_heads, 2 * FAR + 1]"""
        name = g.optional(f"{blk}attn_rel_b.weight") or f"{self.first}attn_rel_b.weight"
        shape = self.n_buckets, self.sizes.n_kv_heads
        g.rec.require(name, shape)
        by_bucket = g.hp.read(name, *shape).reshape(shape)
        return g.made(f"{name} by distance", by_bucket[buckets(self.n_buckets, self.reach == "whole")].T)


@dataclass(frozen=True, slots=True)
class CrossAttention:
    """cross_attn_o(attention of cross_attn_q to what `SourceKeys` left of the source)."""

    sizes: KVSpec
    cache: int

    def __call__(self, g: Graph, blk: str, x: Value) -> Value:
        q = g.linear(x, f"{blk}cross_attn_q", _widths(self.sizes)["q"])
        y = g.rec(_attention(self.sizes, q, None, None, "source", self.cache))
        return g.linear(y, f"{blk}cross_attn_o", g.hp.n_embd)


@dataclass(frozen=True, slots=True)
class SourceKeys:
    """Stores cross_attn_k and cross_attn_v of an encoder's states, for each layer of the decoder in a cache of its
    number."""

    prefix: str
    n_layers: int
    sizes: KVSpec

    def __call__(self, g: Graph, states: Value) -> None:
        s, widths = self.sizes, _widths(self.sizes)
        for il in range(self.n_layers):
            k, v = (g.linear(states, f"{self.prefix}{il}.cross_attn_{c}", widths[c]) for c in "kv")
            g.rec(StoreKV(k=k, v=v, n_kv_heads=s.n_kv_heads, head_dim=s.head_dim, v_head_dim=s.v_head_dim, cache=il))


def heads_of(hp: HParams) -> KVSpec:
    """Heads of every layer, as many for keys and values as for queries."""
    if set(hp.n_kv_heads) != set(hp.n_heads) or len(set(hp.n_heads)) > 1:
        raise ModelError(f"{hp.arch} has {hp.n_heads[0]} heads, but {hp.n_kv_heads[0]} for keys and values")
    return KVSpec(hp.n_heads[0], *hp.head_dims())


def _widths(sizes: KVSpec) -> dict[str, int]:
    keys = sizes.n_kv_heads * sizes.head_dim
    return {"q": keys, "k": keys, "v": sizes.n_kv_heads * sizes.v_head_dim}


def _attention(
    sizes: KVSpec, q: Value, k: Value | None, v: Value | None, reach: str, cache: int, biases: Weight | None = None
) -> Attention:
    return Attention(
        q=q,
        k=k,
        v=v,
        n_heads=sizes.n_kv_heads,
        n_kv_heads=sizes.n_kv_heads,
        head_dim=sizes.head_dim,
        v_head_dim=sizes.v_head_dim,
        scale=1.0,
        reach=reach,
        biases=biases,
        cache=cache,
    )


def buckets(n: int, both: bool) -> NDArray[np.int64]:
    """Bucket of each distance, a key's position less a token's, from -FAR to FAR. `both`: half of the buckets are for
    keys after the token; else there are none of those.

    Of each direction, half of the buckets hold a single distance; the others are as wide as makes their logarithms
    equal, and the last holds the rest.
    """
    one_way = n // 2 if both else n
    exact = one_way // 2
    after = np.arange(-FAR, FAR + 1)
    distance = np.abs(after) if both else np.maximum(-after, 0)
    scale = (one_way - exact) / math.log(FAR / exact)
    # A border may be at a whole distance, whose logarithm must not be rounded down.
    large = exact + (np.log(np.maximum(distance, exact) / exact) * scale + 1e-9).astype(np.int64)
    return np.where(distance < exact, distance, np.minimum(large, one_way - 1)) + one_way * (both & (after > 0))
