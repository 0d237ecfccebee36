"""Linear attention by the gated delta rule, with its projections: Gated DeltaNet (arXiv:2412.06464) and Kimi Delta
Attention (arXiv:2510.26692)."""

from __future__ import annotations

import math
from typing import Any, Self

from pyllm.archs.decoder import RMS
from pyllm.archs.graph import Graph
from pyllm.archs.hparams import HParams
from pyllm.errors import ModelError
from pyllm.program import Value, Weight
from pyllm.program.ops.conv import ShortConv
from pyllm.program.ops.delta import DeltaRule
from pyllm.program.ops.elementwise import MulWeight
from pyllm.program.ops.gate import Activation, GatedActivation
from pyllm.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedDeltaNet:
    """ssm_out(norm(o) * silu(attn_gate(x))), o of the delta rule. Its queries, keys and values are silu(convolution of
    attn_qkv(x)), queries and keys of length 1; decay = ssm_a * softplus(ssm_alpha(x) + ssm_dt.bias), beta =
    sigmoid(ssm_beta(x))."""

    n_heads: int
    n_key_heads: int
    key_dim: int
    value_dim: int
    kernel: int
    """Tokens that the convolution reads."""
    norm: RMS
    """Of each head of the output; of queries and keys too."""
    tiled: bool = False
    """Head h has key head h % n_key_heads, not h * n_key_heads // n_heads."""
    scaled: bool = True
    """The file's scales apply."""

    @classmethod
    def read(cls, hp: HParams, *, tiled: bool = False, scaled: bool = True) -> Self:
        """The mixer with the file's sizes."""
        n_heads, inner = hp.integer("ssm.time_step_rank"), hp.integer("ssm.inner_size")
        if inner % n_heads:
            raise ModelError(f"{hp.arch}.ssm.inner_size is {inner}, which {n_heads} heads do not divide")
        return cls(
            n_heads=n_heads,
            n_key_heads=hp.integer("ssm.group_count"),
            key_dim=hp.integer("ssm.state_size"),
            value_dim=inner // n_heads,
            kernel=hp.integer("ssm.conv_kernel"),
            norm=RMS.read(hp),
            tiled=tiled,
            scaled=scaled,
        )

    def __call__(self, g: Graph, blk: str, x: Value) -> Value:
        q, k, v, gate = self._inputs(g, blk, x)
        beta, alpha = self._rates(g, blk, x)
        g.rec.require(f"{blk}ssm_a", (self.n_heads,))
        y = g.rec(
            DeltaRule(
                q=q,
                k=k,
                v=v,
                decay=g.rec(MulWeight(x=g.rec(Activation(x=alpha, act="softplus")), weight=Weight(f"{blk}ssm_a"))),
                beta=g.rec(Activation(x=beta, act="sigmoid")),
                n_heads=self.n_heads,
                n_key_heads=self.n_key_heads,
                key_dim=self.key_dim,
                value_dim=self.value_dim,
                scale=1 / math.sqrt(self.key_dim),
                tiled=self.tiled,
            )
        )
        y = g.norm(y, f"{blk}ssm_norm", self.value_dim, self.norm)
        gate = gate or g.linear(x, f"{blk}attn_gate", y.width, scaled=self.scaled)
        return g.linear(g.rec(GatedActivation(gate=gate, up=y)), f"{blk}ssm_out", g.hp.n_embd, scaled=self.scaled)

    def _inputs(self, g: Graph, blk: str, x: Value) -> tuple[Value, Value, Value, Value | None]:
        """Queries and keys of length 1, values, and the gate, where it is in a matrix with them: ssm_in, whose rows
        are, for each key head, its query, its key, values and gates of its heads. (The first files of Qwen3-Next)"""
        keys, values, weight = self.n_key_heads * self.key_dim, self.n_heads * self.value_dim, f"{blk}ssm_conv1d.weight"
        shape = 2 * keys + values, self.kernel
        if g.rec.has(f"{blk}attn_qkv.weight") or not g.rec.has(f"{blk}ssm_in.weight"):
            y = g.linear(x, f"{blk}attn_qkv", 2 * keys + values, scaled=self.scaled)
            g.rec.require(weight, shape)
            qk, v = g.split(_convolved(g, y, Weight(weight)), 2 * keys, values)
            q, k = g.split(_unit(g, qk, self.key_dim, self.norm), keys, keys)
            return q, k, v, None
        widths = [n // self.n_key_heads for n in (keys, keys, values, values)]
        q, k, v, gate = g.linears(x, f"{blk}ssm_in", widths, self.n_key_heads, scaled=self.scaled)
        g.rec.require(weight, shape)
        rows = (0, keys), (keys, 2 * keys), (2 * keys, 2 * keys + values)
        q, k, v = (_convolved(g, y, g.rows(weight, *ends)) for y, ends in zip((q, k, v), rows, strict=True))
        q, k = (_unit(g, y, self.key_dim, self.norm) for y in (q, k))
        return q, k, v, gate

    def _rates(self, g: Graph, blk: str, x: Value) -> tuple[Value, Value]:
        """Logits of beta, and what the decay is made of, a number for each head; of one matrix where the file has
        ssm_ba, whose rows are, for each key head, those of its heads' betas, then of their decays."""
        bias = f"{blk}ssm_dt.bias"
        if g.rec.has(f"{blk}ssm_ba.weight"):
            n = self.n_heads // self.n_key_heads
            beta, alpha = g.linears(x, f"{blk}ssm_ba", (n, n), self.n_key_heads, (None, bias))
            return beta, alpha
        return g.linear(x, f"{blk}ssm_beta", self.n_heads), g.linear(x, f"{blk}ssm_alpha", self.n_heads, bias=bias)


@dataclass(frozen=True, slots=True, kw_only=True)
class KimiDeltaAttention:
    """attn_output(norm(o) * sigmoid(gate(x))), o of the delta rule with a decay for each row of the state. Its queries,
    keys and values are silu(convolution of attn_q(x)) and so on, queries and keys of length 1; beta =
    sigmoid(ssm_beta(x)). With f = ssm_f_b(ssm_f_a(x)) + ssm_dt.bias, decay = ssm_a * softplus(f), or, with a least
    decay, least * sigmoid(ssm_a * f). gate = ssm_g_b(ssm_g_a(x)). Files may lack the matrices ssm_f_b and ssm_g_b."""

    n_heads: int
    head_dim: int
    kernel: int
    """Tokens that the convolutions read."""
    norm: RMS
    """Of each head of the output; of queries and keys too."""
    least: float = 0.0
    """Least decay; 0: none."""

    @classmethod
    def read(cls, hp: HParams, **options: Any) -> Self:
        """The mixer with the file's sizes."""
        sizes = hp.integer("kda.head_dim"), hp.integer("ssm.conv_kernel")
        return cls(n_heads=max(hp.n_heads), head_dim=sizes[0], kernel=sizes[1], norm=RMS.read(hp), **options)

    def __call__(self, g: Graph, blk: str, x: Value) -> Value:
        n, dim = self.n_heads, self.head_dim
        q, k, v = (self._convolved(g, blk, x, c) for c in "qkv")
        beta = g.linear(x, f"{blk}ssm_beta", n, scaled=False)
        y = g.rec(
            DeltaRule(
                q=_unit(g, q, dim, self.norm),
                k=_unit(g, k, dim, self.norm),
                v=v,
                decay=self._decay(g, blk, x),
                beta=g.rec(Activation(x=beta, act="sigmoid")),
                n_heads=n,
                n_key_heads=n,
                key_dim=dim,
                value_dim=dim,
                scale=1 / math.sqrt(dim),
            )
        )
        y = g.norm(y, f"{blk}ssm_norm", dim, self.norm)
        gate = self._low_rank(g, x, f"{blk}ssm_g")
        y = g.rec(GatedActivation(gate=gate, up=y, act="sigmoid"))
        return g.linear(y, f"{blk}attn_output", g.hp.n_embd, scaled=False, bias=None)

    def _convolved(self, g: Graph, blk: str, x: Value, c: str) -> Value:
        width = self.n_heads * self.head_dim
        y = g.linear(x, f"{blk}attn_{c}", width, scaled=False, bias=None)
        return _convolved(g, y, g.shaped(f"{blk}ssm_conv1d_{c}.weight", width, self.kernel))

    def _decay(self, g: Graph, blk: str, x: Value) -> Value:
        """Logarithms of what is kept, for each row of the state of each head."""
        f = self._low_rank(g, x, f"{blk}ssm_f", bias=f"{blk}ssm_dt.bias")
        a = g.shaped(f"{blk}ssm_a", self.n_heads)
        if not self.least:
            return g.rec(MulWeight(x=g.rec(Activation(x=f, act="softplus")), weight=a))
        return g.times(g.rec(Activation(x=g.rec(MulWeight(x=f, weight=a)), act="sigmoid")), self.least)

    def _low_rank(self, g: Graph, x: Value, stem: str, bias: str | None = None) -> Value:
        """A number for each column of each head, by two matrices or by one."""
        width = self.n_heads * self.head_dim
        if not g.rec.has(f"{stem}_b.weight"):
            return g.linear(x, f"{stem}_a", width, scaled=False, bias=bias)
        y = g.linear(x, f"{stem}_a", g.rec.shape(f"{stem}_a.weight")[0], scaled=False, bias=None)
        return g.linear(y, f"{stem}_b", width, scaled=False, bias=bias)


def _unit(g: Graph, x: Value, dim: int, norm: RMS) -> Value:
    """x / |x| of each head of `dim` columns: what a norm without weights gives, divided by the root of the length."""
    return g.times(g.norm(x, "", dim, RMS(norm.eps / dim)), 1 / math.sqrt(dim))


def _convolved(g: Graph, x: Value, weight: Weight) -> Value:
    return g.rec(Activation(x=g.rec(ShortConv(x=x, weight=weight)), act="silu"))
