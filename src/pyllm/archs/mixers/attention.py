"""Attention over a KV cache, with its projections."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, Self

from pyllm.archs.graph import Graph
from pyllm.archs.hparams import HParams
from pyllm.archs.rope import Rope
from pyllm.errors import ModelError
from pyllm.program import Value, Weight
from pyllm.program.ops import attention as ops
from pyllm.program.ops.elementwise import Clamp, MulWeight
from pyllm.program.ops.gate import GatedActivation
from pyllm.program.ops.linear import Linear
from pyllm.program.ops.position import PositionScale, log_factors
from pyllm.program.ops.rope import Rope as Rotate
from pyllm.records import dataclass


def layer_of_keys(hp: HParams, windows: Sequence[int], n_own: int, il: int) -> int | None:
    """The layer whose keys and values layer `il` reads, where only the first `n_own` have some: the last of those with
    a window or without one, as it has; None: its own."""
    if il < n_own:
        return None
    alike = [j for j in range(n_own) if bool(windows[j]) == bool(windows[il])]
    if not alike:
        raise ModelError(f"{hp.arch}.attention.shared_kv_layers leaves layer {il} no layer to read keys from")
    return alike[-1]


@dataclass(frozen=True, slots=True)
class PositionFactors:
    """1 + scale * log(1 + (position + offset) // length)."""

    scale: float
    length: int
    offset: int = 0

    def __call__(self, g: Graph, x: Value) -> Value:
        factors = log_factors(self.scale, self.length, self.offset, g.hp.n_ctx)
        if len(factors) == 1:  # no position is scaled
            return x
        return g.rec(PositionScale(x=x, factors=factors, length=self.length, offset=self.offset))


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """attn_output(attention of attn_q, attn_k and attn_v, or of the fused attn_qkv)."""

    n_heads: int
    n_kv_heads: int
    head_dim: int
    v_head_dim: int
    scale: float
    """Factor of the scores."""
    rope: Rope | None
    """None: no positions."""
    window: int = 0
    reach: str = "causal"
    """What a token sees, of `REACHES` of the op."""
    alibi: float = 0.0
    """Greatest bias by distance (ALiBi) of the scores of a position; 0: none."""
    clamp: float = 0.0
    """Queries, keys and values are at most as large; 0: any."""
    qk_norm: Literal["none", "head", "width", "gain", "plain"] = "none"
    """Norm of queries and keys: of each head; over all heads ("width"); of each head with one weight ("gain"); of each
    head without weights ("plain"); or none."""
    keys_as_values: bool = False
    """Values are the keys before norm and rotation; without attn_v."""
    v_norm: bool = False
    """Norm of each head's values, without weights."""
    kv_from: int | None = None
    """Layer whose keys and values are read in place of its own."""
    rope_first: bool = False
    """Rotation comes before the norm."""
    q_scale: PositionFactors | None = None
    """Factors of queries by position."""
    softcap: float = 0.0
    sinks: bool = False
    """Each head has a sink, `attn_sinks.weight`."""
    gate: str | None = None
    """The output is multiplied by this activation of `attn_gate`(x), with a number for each column or head."""
    gate_in_q: bool = False
    """The gate is not of a matrix of its own: the rows of `attn_q` are, for each head, a query and a gate."""
    sub_norm: str | None = None
    """Norm before the output projection."""
    out_scale: float = 1.0
    """Factor of the output."""
    scaled: bool = True
    """The file's scales apply to queries, keys and values too."""
    biases: bool = True
    """The file's biases apply to queries, keys and values."""
    out_bias: bool = True
    """The file's bias applies to the output."""

    @classmethod
    def read(
        cls,
        hp: HParams,
        il: int,
        *,
        interleaved: bool = False,
        window: int = 0,
        ropes: tuple[Rope | None, Rope | None] | None = None,
        **options: Any,
    ) -> Self:
        """The mixer of layer `il`, with the file's sizes.

        Options may replace the file's positions: `rope`, or `ropes` for layers without and with a window.
        """
        n_heads, n_kv_heads = hp.n_heads[il], hp.n_kv_heads[il]
        if not (n_heads and n_kv_heads):
            raise ModelError(f"{hp.arch}.attention.head_count is {n_heads}, head_count_kv {n_kv_heads} in layer {il}")
        head_dim, v_head_dim = hp.head_dims(window > 0)
        if ropes is not None:
            options["rope"] = ropes[window > 0]
        elif "rope" not in options:
            options["rope"] = Rope.read(hp, interleaved=interleaved, windowed=window > 0)
        if not hp.flag("attention.causal", True) and "reach" not in options:
            if window:
                raise ModelError(f"{hp.arch} has windows of {window} positions, but its attention is not causal")
            options["reach"] = "whole"
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
        q, k, v, gate = self._inputs(g, blk, x)
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
                reach=self.reach,
                window=self.window,
                softcap=self.softcap,
                slopes=ops.alibi_slopes(self.n_heads, self.alibi),
                sinks=Weight(f"{blk}attn_sinks.weight") if self.sinks else None,
                cache=-1 if self.kv_from is None else g.caches[self.kv_from],
            )
        )
        if self.kv_from is None:
            attention = g.rec.ops[y.id]
            assert isinstance(attention, ops.Attention)
            g.caches[g.rec.layer] = attention.cache
        if self.gate:
            name = f"{blk}attn_gate"
            gate = gate or g.linear(x, name, g.rec.shape(f"{name}.weight")[0], scaled=False)
            y = g.rec(GatedActivation(gate=gate, up=y, act=self.gate))
        y = g.norm(y, self.sub_norm and blk + self.sub_norm)
        out = g.linear(y, f"{blk}attn_output", g.hp.n_embd, bias="" if self.out_bias else None)
        return g.times(out, self.out_scale)

    def _inputs(self, g: Graph, blk: str, x: Value) -> tuple[Value, Value | None, Value | None, Value | None]:
        """Queries, keys and values, normed and rotated (None: another layer's), and the gate, where it is in attn_q."""
        gate, width = None, self.n_heads * self.head_dim
        if self.kv_from is not None:
            (q,) = self._turned(g, blk, q=g.linear(x, f"{blk}attn_q", width, scaled=self.scaled))
            return q, None, None, None
        if self.gate_in_q:
            q, gate = g.linears(x, f"{blk}attn_q", (self.head_dim, self.v_head_dim), self.n_heads)
            k = g.linear(x, f"{blk}attn_k", self.n_kv_heads * self.head_dim)
            v = g.linear(x, f"{blk}attn_v", self.n_kv_heads * self.v_head_dim)
        else:
            q, k, v = self._qkv(g, blk, x)
        q, k = self._turned(g, blk, q=q, k=k)
        return q, k, g.norm(v, "", self.v_head_dim) if self.v_norm else v, gate

    def _clamped(self, g: Graph, y: Value) -> Value:
        return g.rec(Clamp(x=y, most=self.clamp)) if self.clamp else y

    def _qkv(self, g: Graph, blk: str, x: Value) -> Sequence[Value]:
        """Queries, keys and values of x [tokens, n_embd]; one product where the file has a fused matrix."""
        widths = {
            "q": self.n_heads * self.head_dim,
            "k": self.n_kv_heads * self.head_dim,
            "v": self.n_kv_heads * self.v_head_dim,
        }
        fused = f"{blk}attn_qkv"
        if not g.rec.has(f"{fused}.weight"):
            if self.keys_as_values:
                q, k = (g.linear(x, f"{blk}attn_{c}", widths[c], scaled=self.scaled) for c in "qk")
                return q, k, k
            bias = "" if self.biases else None
            parts = [g.linear(x, f"{blk}attn_{c}", widths[c], scaled=self.scaled, bias=bias) for c in "qkv"]
            return [self._clamped(g, y) for y in parts]
        if g.rec.has(f"{blk}attn_q.bias") and not g.rec.has(f"{fused}.bias"):
            out, start = [], 0
            g.rec.require_rows(f"{fused}.weight", sum(widths.values()))
            for c, width in widths.items():
                rows = g.rows(f"{fused}.weight", start, start + width)
                y = g.rec(Linear(x=x, weight=rows, bias=Weight(f"{blk}attn_{c}.bias")))
                out.append(self._clamped(g, y))
                start += width
            return out
        y = self._clamped(g, g.linear(x, fused, sum(widths.values()), scaled=self.scaled))
        return g.split(y, *widths.values())

    def _turned(self, g: Graph, blk: str, **heads: Value) -> Iterable[Value]:
        """Queries (q) and keys (k), normed and rotated, in either order."""
        if self.rope_first:
            heads = {c: self._rotate(g, y) for c, y in heads.items()}
        heads = {c: self._normed(g, y, f"{blk}attn_{c}_norm") for c, y in heads.items()}
        if self.q_scale:
            heads["q"] = self.q_scale(g, heads["q"])
        return heads.values() if self.rope_first else [self._rotate(g, y) for y in heads.values()]

    def _normed(self, g: Graph, x: Value, norm: str) -> Value:
        if self.qk_norm == "gain":
            x = g.norm(x, "", self.head_dim)
            gain = g.optional(f"{norm}.weight")
            return g.rec(MulWeight(x=x, weight=gain)) if gain else x
        if self.qk_norm in ("none", "plain"):
            return g.norm(x, "", self.head_dim) if self.qk_norm == "plain" else x
        return g.norm(x, norm, self.head_dim if self.qk_norm == "head" else 0)

    def _rotate(self, g: Graph, x: Value) -> Value:
        if self.rope is None:
            return x
        r = self.rope
        return g.rec(
            Rotate(x=x, head_dim=self.head_dim, inv_freq=r.inv_freq, mscale=r.mscale, interleaved=r.interleaved)
        )
