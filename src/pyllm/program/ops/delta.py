"""The gated delta rule."""

from __future__ import annotations

from pyllm.errors import ModelError
from pyllm.program.op import Recurrent, Shapes
from pyllm.program.values import SlotSpec, Value
from pyllm.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaRule(Recurrent):
    """Linear attention whose state S [key_dim, value_dim] of each head forgets, and is corrected towards each value:

    S <- exp(decay) * S;  S <- S + k (beta * (v - S.T k)).T;  out = scale * S.T q.

    q, k [tokens, n_key_heads * key_dim], v [tokens, n_heads * value_dim], beta [tokens, n_heads]; decay [tokens,
    n_heads], or [tokens, n_heads * key_dim] with a number for each row of S; out [tokens, n_heads * value_dim]. Head h
    reads key head h % n_key_heads if `tiled`, else h * n_key_heads // n_heads.
    Gated DeltaNet (arXiv:2412.06464) has a decay for each head, Kimi Delta Attention (arXiv:2510.26692) for each row.
    State: S of each head, [n_heads, key_dim, value_dim].
    """

    q: Value
    k: Value
    v: Value
    decay: Value
    beta: Value
    n_heads: int
    n_key_heads: int
    key_dim: int
    value_dim: int
    scale: float
    tiled: bool = False

    @property
    def decays_by_row(self) -> bool:
        """Whether each row of the state has its own decay."""
        return self.decay.width != self.n_heads

    def key_head(self, head: int) -> int:
        """The key head that a head reads."""
        return head % self.n_key_heads if self.tiled else head * self.n_key_heads // self.n_heads

    def slot(self, shapes: Shapes) -> SlotSpec:
        return SlotSpec((self.n_heads, self.key_dim, self.value_dim))

    def infer(self, shapes: Shapes) -> int:
        n, n_keys = self.n_heads, self.n_key_heads
        if min(n, n_keys, self.key_dim, self.value_dim) < 1 or n % n_keys:
            raise ModelError(f"{n} heads cannot share {n_keys} key heads")
        keys, values = n_keys * self.key_dim, n * self.value_dim
        if (self.q.width, self.k.width, self.v.width, self.beta.width) != (keys, keys, values, n):
            raise ModelError(
                f"queries, keys, values and betas of {self.q.width}, {self.k.width}, {self.v.width} and "
                f"{self.beta.width} columns do not make {n} heads, {n_keys} for keys, of {self.key_dim} and "
                f"{self.value_dim} columns"
            )
        if self.decay.width not in (n, n * self.key_dim):
            raise ModelError(
                f"a decay of {self.decay.width} columns is neither one for each of {n} heads nor for each row"
            )
        shapes.every_token("the delta rule needs every token", self.q, self.k, self.v, self.decay, self.beta)
        return values
