"""Linear attention: a matrix for each head in place of keys and values."""

from __future__ import annotations

from pyllm.errors import ModelError
from pyllm.program.op import Recurrent, Shapes
from pyllm.program.values import SlotSpec, Value
from pyllm.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearAttention(Recurrent):
    """Attention without a softmax: the state S [key_dim, value_dim] of each head forgets, and takes in every token,

    S <- exp(decay) * S + k v.T [+ insert (S.T erase).T];  out = scale * S.T q.

    q [tokens, n_heads * key_dim], k [tokens, n_key_heads * key_dim], v [tokens, n_key_heads * value_dim]; head h reads
    key head h * n_key_heads // n_heads. out [tokens, n_heads * value_dim].

    decay [tokens, n_heads * key_dim], a number for each row of S, in gated linear attention (arXiv:2312.06635) and RWKV
    6 (arXiv:2404.05892); without that, a number for each head, `decays`, in lightning attention (arXiv:2401.04658).
    With `complement`, k is multiplied by 1 - exp(decay). With `before`, out is of the S before the token (RWKV 6).
    erase, insert [tokens, n_heads * key_dim], of RWKV 7 (arXiv:2503.14456), replace what S holds in one direction;
    `erase` reads the S before the decay.
    State: S of each head, [n_heads, key_dim, value_dim].
    """

    q: Value
    k: Value
    v: Value
    decay: Value | None = None
    erase: Value | None = None
    insert: Value | None = None
    decays: tuple[float, ...] = ()
    n_heads: int
    n_key_heads: int
    key_dim: int
    value_dim: int
    scale: float = 1.0
    complement: bool = False
    before: bool = False

    def key_head(self, head: int) -> int:
        """The head of keys and values that a head reads."""
        return head * self.n_key_heads // self.n_heads

    def slot(self, shapes: Shapes) -> SlotSpec:
        return SlotSpec((self.n_heads, self.key_dim, self.value_dim))

    def infer(self, shapes: Shapes) -> int:
        n, n_keys, rows = self.n_heads, self.n_key_heads, self.n_heads * self.key_dim
        if min(n, n_keys, self.key_dim, self.value_dim) < 1 or n % n_keys:
            raise ModelError(f"{n} heads cannot share {n_keys} key heads")
        widths = self.q.width, self.k.width, self.v.width
        if widths != (rows, n_keys * self.key_dim, n_keys * self.value_dim):
            raise ModelError(
                f"queries, keys and values of {widths[0]}, {widths[1]} and {widths[2]} columns do not make {n} heads, "
                f"{n_keys} for keys and values, of {self.key_dim} and {self.value_dim} columns"
            )
        n_decays = n if self.decay is None else 0
        if len(self.decays) != n_decays or (self.erase is None) != (self.insert is None):
            raise ModelError("linear attention needs a decay for each row or for each head; erase comes with insert")
        for name, value in (("decay", self.decay), ("erase", self.erase), ("insert", self.insert)):
            if value is not None and value.width != rows:
                raise ModelError(f"{name} has {value.width} columns, not {rows}: one for each row of {n} heads' states")
        values = (self.q, self.k, self.v, self.decay, self.erase, self.insert)
        shapes.every_token("linear attention needs every token", *(value for value in values if value is not None))
        return n * self.value_dim
