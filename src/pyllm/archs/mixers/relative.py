"""Attention with biases by distance in place of positions (T5, arXiv:1910.10683)."""

from __future__ import annotations

import math
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pyllm.archs.graph import Graph
from pyllm.archs.hparams import HParams
from pyllm.errors import ModelError
from pyllm.program import Value, Weight
from pyllm.program.ops.attention import Attention
from pyllm.records import dataclass

FAR = 128
"""Distance in positions from which all keys have one bias."""


@dataclass(frozen=True, slots=True)
class RelativeAttention:
    """attn_o(attention of attn_q, attn_k and attn_v); a token sees the whole sequence. Scores are not scaled; they have
    a bias by head and bucket of distances, `attn_rel_b` of the layer or of the first one."""

    first: str
    """Prefix of the names of the first layer's tensors."""
    n_heads: int
    head_dim: int
    v_head_dim: int
    n_buckets: int

    @classmethod
    def read(cls, hp: HParams, il: int, first: str) -> Self:
        """The mixer of layer `il`, with the file's sizes."""
        n_heads, n_buckets = hp.n_heads[il], hp.integer("attention.relative_buckets_count")
        if hp.n_kv_heads[il] != n_heads:
            raise ModelError(f"{hp.arch} has {n_heads} heads, but {hp.n_kv_heads[il]} for keys and values")
        if n_buckets not in range(4, 4 * FAR, 2):
            raise ModelError(f"{hp.arch} has {n_buckets} buckets of distances; even numbers from 4 to 510 would work")
        return cls(first, n_heads, *hp.head_dims(), n_buckets)

    def __call__(self, g: Graph, blk: str, x: Value) -> Value:
        widths = {"q": self.head_dim, "k": self.head_dim, "v": self.v_head_dim}
        q, k, v = (g.linear(x, f"{blk}attn_{c}", self.n_heads * width) for c, width in widths.items())
        y = g.rec(
            Attention(
                q=q,
                k=k,
                v=v,
                n_heads=self.n_heads,
                n_kv_heads=self.n_heads,
                head_dim=self.head_dim,
                v_head_dim=self.v_head_dim,
                scale=1.0,
                reach="whole",
                biases=self._biases(g, blk),
            )
        )
        return g.linear(y, f"{blk}attn_o", g.hp.n_embd)

    def _biases(self, g: Graph, blk: str) -> Weight:
        """[n_heads, 2 * FAR + 1]"""
        name = g.optional(f"{blk}attn_rel_b.weight") or f"{self.first}attn_rel_b.weight"
        shape = self.n_buckets, self.n_heads
        g.rec.require(name, shape)
        by_bucket = g.hp.read(name, *shape).reshape(shape)
        return g.made(f"{name} by distance", by_bucket[buckets(self.n_buckets)].T)


def buckets(n: int) -> NDArray[np.int64]:
    """Bucket of each distance, a key's position less a token's, from -FAR to FAR.

    Half of them are for keys after the token. Of each half, half hold a single distance; the others are as wide as
    makes their logarithms equal, and the last holds the rest.
    """
    half, exact = n // 2, n // 4
    distance = np.abs(np.arange(-FAR, FAR + 1))
    scale = (half - exact) / math.log(FAR / exact)
    # A border may be at a whole distance, whose logarithm must not be rounded down.
    large = exact + (np.log(np.maximum(distance, exact) / exact) * scale + 1e-9).astype(np.int64)
    of_half = np.where(distance < exact, distance, np.minimum(large, half - 1))
    return of_half + half * (np.arange(-FAR, FAR + 1) > 0)
