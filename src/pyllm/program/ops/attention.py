"""Attention over a KV cache."""

from __future__ import annotations

from dataclasses import replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pyllm.errors import ModelError
from pyllm.program.op import Cached, Shapes, known
from pyllm.program.values import KVSpec, Value, Weight
from pyllm.records import dataclass

REACHES = ("causal", "chunked", "whole", "source")


@dataclass(frozen=True, slots=True)
class Sight:
    """The positions of its sequence that a token at position p sees; `end` is the one after the step's last token.

    causal    max(0, p - window + 1) .. p (window 0: all up to p)
    chunked   the first of p's chunk of `window` positions .. p
    whole     those before `end`, of a window within window // 2 of p (window 0: all)
    source    those before `end`, the number of tokens of the sequence's source (`Batch.sources`)
    """

    reach: str
    window: int

    def first(self, p: NDArray[np.integer]) -> NDArray[np.integer]:
        """The first position seen from each of p."""
        if not self.window:
            return np.zeros_like(p)
        if self.reach == "chunked":
            return p // self.window * self.window
        return np.maximum(p - (self.window // 2 if self.reach == "whole" else self.window - 1), 0)

    def stop(self, p: NDArray[np.integer], end: int | NDArray[np.integer]) -> NDArray[np.integer]:
        """The position after the last one seen from each of p."""
        if self.reach not in ("whole", "source"):
            return p + 1
        return np.minimum(p + (self.window // 2 + 1), end) if self.window else np.zeros_like(p) + end


def alibi_slopes(n_heads: int, max_bias: float) -> tuple[float, ...]:
    """`Attention.slopes` of ALiBi (arXiv:2108.12409): powers of 2^(-max_bias / n) for the largest power of two n of
    heads; the other heads have those half way between. No bias: no slopes."""
    if not max_bias:
        return ()
    n = 1 << (n_heads.bit_length() - 1)
    steps = [h + 1 if h < n else (2 * (h - n) + 1) / 2 for h in range(n_heads)]
    return tuple(float(np.float32(2 ** (-max_bias / n * step))) for step in steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention(Cached):
    """Stores k and v in KV cache `cache` at each token's position, then out = attention of q over its sequence.

    Without k and v it reads the cache of an earlier op, which has the same heads and sizes (keys and values shared
    between layers); the window is its own.
    q [tokens, n_heads * head_dim], k [tokens, n_kv_heads * head_dim], v [tokens, n_kv_heads * v_head_dim],
    out [tokens, n_heads * v_head_dim]. Head h reads KV head h * n_kv_heads // n_heads. `Sight` says what a token sees,
    by `reach` and `window`. Scores are (q . k) * scale, then softcap * tanh(. / softcap) if softcap is not 0, then less
    slopes[h] * distance in positions, where there are `slopes`. `biases` names a matrix [n_heads, 2 n + 1]: biases[h, n
    + r] is added to the score of a key r positions after the token, r from -n to n; further away it is as there.
    `sinks` [n_heads] names logits that join each head's softmax without a value. Where reach is "whole", a step holds
    all of a sequence; its keys and values are read in the same op alone, so all such ops of equal sizes have one cache.
    """

    q: Value
    k: Value | None
    v: Value | None
    n_heads: int
    n_kv_heads: int
    head_dim: int
    v_head_dim: int
    scale: float
    reach: str = "causal"
    window: int = 0
    softcap: float = 0.0
    slopes: tuple[float, ...] = ()
    biases: Weight | None = None
    sinks: Weight | None = None

    def settle(self, shapes: Shapes) -> Self:
        if self.k is None or self.cache >= 0:
            return self
        kept = self.reach != "whole"
        spec = KVSpec(self.n_kv_heads, self.head_dim, self.v_head_dim, self.window if kept else 0, kept)
        caches = [spec for spec in shapes.states if isinstance(spec, KVSpec)]
        if not kept and spec in caches:
            return replace(self, cache=caches.index(spec))
        shapes.states.append(spec)
        return replace(self, cache=len(caches))

    @property
    def sight(self) -> Sight:
        return Sight(self.reach, self.window)

    def infer(self, shapes: Shapes) -> int:
        heads, kv_heads, q, k, v = self.n_heads, self.n_kv_heads, self.q, self.k, self.v
        if min(heads, kv_heads, self.head_dim, self.v_head_dim) < 1 or heads % kv_heads:
            raise ModelError(f"{heads} heads cannot share {kv_heads} key/value heads")
        known(self.reach, REACHES)
        if self.reach == "chunked" and not self.window:
            raise ModelError("attention within chunks needs their size, a window")
        if self.reach == "source" and (self.k is not None or self.window):
            raise ModelError("attention to a source reads keys and values that another op stores, all of them")
        if self.slopes and len(self.slopes) != heads:
            raise ModelError(f"{len(self.slopes)} slopes are not one for each of {heads} heads")
        if self.biases is not None:
            self._check_biases(self.biases, shapes)
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

    def _check_biases(self, biases: Weight, shapes: Shapes) -> None:
        shape = shapes.shape(biases)
        if len(shape) != 2 or shape[0] != self.n_heads or not shape[1] % 2:
            shapes.refuse(biases, (self.n_heads, shape[-1] | 1))
        if self.slopes:
            raise ModelError("attention has slopes by distance or biases by distance, not both")

    def _check_cache(self, shapes: Shapes) -> None:
        caches = [spec for spec in shapes.states if isinstance(spec, KVSpec)]
        spec = caches[self.cache] if 0 <= self.cache < len(caches) else None
        sizes = self.n_kv_heads, self.head_dim, self.v_head_dim
        if self.k is not self.v or spec is None or sizes != (spec.n_kv_heads, spec.head_dim, spec.v_head_dim):
            raise ModelError(f"attention without keys and values of its own cannot read KV cache {self.cache}: {spec}")
