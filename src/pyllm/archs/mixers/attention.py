"""Attention over a KV cache, with its projections."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from pyllm.archs.graph import Graph
from pyllm.archs.hparams import HParams
from pyllm.archs.rope import Rope
from pyllm.errors import ModelError
from pyllm.program import Value, Weight
from pyllm.program.ops import attention as ops
from pyllm.program.ops.linear import Linear
from pyllm.program.ops.rope import Rope as Rotate
from pyllm.program.ops.select import Slice


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """attn_output(attention of attn_q, attn_k and attn_v, or of the fused attn_qkv)."""

    n_heads: int
    n_kv_heads: int
    head_dim: int
    v_head_dim: int
    scale: float
    """What scores are multiplied by."""
    rope: Rope | None
    """None: a layer without positions."""
    window: int = 0
    qk_norm: Literal["none", "head", "width"] = "none"
    """Norm of queries and keys: of each head, or over all heads."""
    rope_first: bool = False
    """Queries and keys are rotated before that norm."""
    softcap: float = 0.0
    sinks: bool = False
    """Each head has a sink, `attn_sinks.weight`."""
    sub_norm: str | None = None
    """Norm before the output projection."""
    out_scale: float = 1.0
    """Multiplies what comes out."""
    scaled: bool = True
    """The scales of the file hold for queries, keys and values too."""

    @classmethod
    def read(cls, hp: HParams, il: int, *, interleaved: bool = False, window: int = 0, **options: Any) -> Self:
        """Layer `il`'s, with the sizes of the file. `rope` among the options replaces the file's positions."""
        n_heads, n_kv_heads = hp.n_heads[il], hp.n_kv_heads[il]
        if not (n_heads and n_kv_heads):
            raise ModelError(f"{hp.arch}.attention.head_count is {n_heads}, head_count_kv {n_kv_heads} in layer {il}")
        head_dim, v_head_dim = hp.head_dims(window > 0)
        if "rope" not in options:
            options["rope"] = Rope.read(hp, interleaved=interleaved, windowed=window > 0)
        if "scale" not in options:
            options["scale"] = hp.number("attention.scale", 1 / math.sqrt(head_dim))
        return cls(
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            v_head_dim=v_head_dim,
            window=window,
            **options,
        )

    def __call__(self, g: Graph, blk: str, x: Value) -> Value:
        q, k, v = self._qkv(g, blk, x)
        if self.rope_first:
            q, k = self._rotate(g, q), self._rotate(g, k)
        if self.qk_norm != "none":
            group = self.head_dim if self.qk_norm == "head" else 0
            q, k = g.norm(q, f"{blk}attn_q_norm", group), g.norm(k, f"{blk}attn_k_norm", group)
        if not self.rope_first:
            q, k = self._rotate(g, q), self._rotate(g, k)
        y = g.rec(
            ops.Attention(
                q=q,
                k=k,
                v=v,
                n_heads=self.n_heads,
                n_kv_heads=self.n_kv_heads,
                head_dim=self.head_dim,
                v_head_dim=self.v_head_dim,
                scale=self.scale,
                window=self.window,
                softcap=self.softcap,
                sinks=Weight(f"{blk}attn_sinks.weight") if self.sinks else None,
            )
        )
        y = g.norm(y, self.sub_norm and blk + self.sub_norm)
        return g.times(g.linear(y, f"{blk}attn_output", g.hp.n_embd), self.out_scale)

    def _qkv(self, g: Graph, blk: str, x: Value) -> Sequence[Value]:
        """Queries, keys and values of [tokens, n_embd]; by one product where the file has one matrix for them."""
        widths = {
            "q": self.n_heads * self.head_dim,
            "k": self.n_kv_heads * self.head_dim,
            "v": self.n_kv_heads * self.v_head_dim,
        }
        fused = f"{blk}attn_qkv"
        if not g.rec.has(f"{fused}.weight"):
            return [g.linear(x, f"{blk}attn_{c}", width, scaled=self.scaled) for c, width in widths.items()]
        out, start = [], 0
        if g.rec.has(f"{blk}attn_q.bias") and not g.rec.has(f"{fused}.bias"):
            g.rec.require_rows(f"{fused}.weight", sum(widths.values()))
            for c, width in widths.items():
                rows = g.rows(f"{fused}.weight", start, start + width)
                out.append(g.rec(Linear(x=x, weight=rows, bias=Weight(f"{blk}attn_{c}.bias"))))
                start += width
            return out
        y = g.linear(x, fused, sum(widths.values()), scaled=self.scaled)
        for width in widths.values():
            out.append(g.rec(Slice(x=y, start=start, width=width)))
            start += width
        return out

    def _rotate(self, g: Graph, x: Value) -> Value:
        if self.rope is None:
            return x
        r = self.rope
        return g.rec(
            Rotate(x=x, head_dim=self.head_dim, inv_freq=r.inv_freq, mscale=r.mscale, interleaved=r.interleaved)
        )
