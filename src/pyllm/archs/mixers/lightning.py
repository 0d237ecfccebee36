"""Lightning attention (arXiv:2401.04658): linear attention whose heads each have a constant decay."""

from __future__ import annotations

from typing import Self

from pyllm.archs.graph import Graph
from pyllm.archs.hparams import HParams
from pyllm.errors import ModelError
from pyllm.program import Value
from pyllm.program.ops.gate import Activation, GatedActivation
from pyllm.program.ops.linear_attention import LinearAttention
from pyllm.records import dataclass


@dataclass(frozen=True, slots=True)
class LightningAttention:
    """attn_output(sigmoid(attn_gate(x)) * attn_norm_2(linear attention of silu(attn_qkv(x)))); the rows of attn_qkv are
    each head's query, key and value."""

    decays: tuple[float, ...]
    """Logarithm of each head's."""
    head_dim: int

    @classmethod
    def read(cls, hp: HParams, il: int) -> Self:
        """Layer `il`'s: heads forget at rates from 2^(-8 / n_heads) down to 2^-8, and less from layer to layer."""
        n_heads, (head_dim, v_head_dim) = hp.n_heads[il], hp.head_dims()
        if not n_heads or v_head_dim != head_dim:
            raise ModelError(f"{n_heads} heads of {head_dim} and {v_head_dim} columns cannot be lightning attention's")
        depth = 1 - il / max(1, hp.n_layers - 1) + 1e-5
        return cls(tuple(-depth * 2 ** (-8 * (h + 1) / n_heads) for h in range(n_heads)), head_dim)

    def __call__(self, g: Graph, blk: str, x: Value) -> Value:
        d, n = self.head_dim, len(self.decays)
        q, k, v = (
            g.rec(Activation(x=part, act="silu")) for part in g.linears(x, f"{blk}attn_qkv", (d, d, d), n, scaled=False)
        )
        y = g.rec(
            LinearAttention(
                q=q, k=k, v=v, decays=self.decays, n_heads=n, n_key_heads=n, key_dim=d, value_dim=d
            )
        )  # fmt: skip
        gate, y = g.linear(x, f"{blk}attn_gate", n * d), g.norm(y, f"{blk}attn_norm_2")
        return g.linear(
            g.rec(GatedActivation(gate=gate, up=y, act="sigmoid")), f"{blk}attn_output", x.width, scaled=False
        )
