"""Mixers with a selective state space: Mamba 1 and 2, as files lay them out."""

from __future__ import annotations

from typing import Self

from pyllm.archs.graph import Graph
from pyllm.archs.hparams import HParams
from pyllm.errors import ModelError
from pyllm.program import Value, Weight
from pyllm.program.ops.conv import ShortConv
from pyllm.program.ops.gate import Activation, GatedActivation
from pyllm.program.ops.ssm import SSMScan1, SSMScan2
from pyllm.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Mamba1:
    """ssm_out(scan(u) * silu(z)) with u = silu(ssm_conv1d(x)); x and z are the halves of ssm_in, steps and the state's
    inputs and outputs ssm_x(u)."""

    width: int
    """Channels."""
    state_dim: int
    rank: int
    """Columns of steps, before ssm_dt makes one of each channel."""
    normed: bool = False
    """Steps, inputs and outputs are normed, without weights where the file has none."""

    @classmethod
    def read(cls, hp: HParams) -> Self:
        width, state_dim, rank = (hp.integer(f"ssm.{key}") for key in ("inner_size", "state_size", "time_step_rank"))
        return cls(width=width, state_dim=state_dim, rank=rank, normed=hp.flag("ssm.dt_b_c_rms", False))

    def __call__(self, g: Graph, blk: str, x: Value) -> Value:
        width, n = self.width, self.state_dim
        u, z = g.split(g.linear(x, f"{blk}ssm_in", 2 * width), width, width)
        u = _convolved(g, blk, u)
        read = g.split(g.linear(u, f"{blk}ssm_x", self.rank + 2 * n), self.rank, n, n)
        dt, b, c = (self._normed(g, v, f"{blk}ssm_{what}_norm") for what, v in zip(("dt", "b", "c"), read, strict=True))
        dt = g.linear(dt, f"{blk}ssm_dt", width)
        y = g.rec(SSMScan1(x=u, dt=dt, b=b, c=c, a=Weight(f"{blk}ssm_a"), d=Weight(f"{blk}ssm_d")))
        return g.linear(g.rec(GatedActivation(gate=z, up=y)), f"{blk}ssm_out", g.hp.n_embd)

    def _normed(self, g: Graph, x: Value, stem: str) -> Value:
        weight = g.optional(stem, f"{stem}.weight")
        return g.norm(x, weight or "") if weight or self.normed else x


@dataclass(frozen=True, slots=True, kw_only=True)
class Mamba2:
    """ssm_out(ssm_norm(scan * silu(z))): z, what is convolved (columns of heads, the state's inputs and outputs of
    groups) and steps are parts of ssm_in. The norm is of each group; some files have none."""

    width: int
    """Columns of all heads."""
    n_heads: int
    state_dim: int
    n_groups: int

    @classmethod
    def read(cls, hp: HParams) -> Self:
        return cls(
            width=hp.integer("ssm.inner_size"),
            n_heads=hp.integer("ssm.time_step_rank"),
            state_dim=hp.integer("ssm.state_size"),
            n_groups=hp.integer("ssm.group_count"),
        )

    def __call__(self, g: Graph, blk: str, x: Value) -> Value:
        width, inner = self.width, self.n_groups * self.state_dim
        parts = width, width + 2 * inner, self.n_heads
        z, u, dt = g.split(g.linear(x, f"{blk}ssm_in", sum(parts)), *parts)
        u, b, c = g.split(_convolved(g, blk, u), width, inner, inner)
        a, d, bias = (Weight(f"{blk}ssm_{name}") for name in ("a", "d", "dt.bias"))
        y = g.rec(SSMScan2(x=u, dt=dt, b=b, c=c, a=a, d=d, dt_bias=bias, n_groups=self.n_groups))
        y = g.rec(GatedActivation(gate=z, up=y))
        if g.rec.has(f"{blk}ssm_norm.weight"):
            y = g.norm(y, f"{blk}ssm_norm", g.rec.shape(f"{blk}ssm_norm.weight")[-1])
        return g.linear(y, f"{blk}ssm_out", g.hp.n_embd)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlamoMamba:
    """PLaMo 2's: the flow of Mamba 1 with heads of Mamba 2. The rows of ssm_in are, for each head, z and x."""

    width: int
    """Columns of all heads."""
    n_heads: int
    state_dim: int

    @classmethod
    def read(cls, hp: HParams) -> Self:
        width, n_heads, n = (hp.integer(f"ssm.{key}") for key in ("inner_size", "time_step_rank", "state_size"))
        if width % n_heads:
            raise ModelError(f"{hp.arch}.ssm.inner_size is {width}, but ssm.time_step_rank is {n_heads}")
        return cls(width=width, n_heads=n_heads, state_dim=n)

    def __call__(self, g: Graph, blk: str, x: Value) -> Value:
        n, head_dim = self.state_dim, self.width // self.n_heads
        rank = g.rec.rows(f"{blk}ssm_x.weight", self.width) - 2 * n
        z, u = g.linears(x, f"{blk}ssm_in", (head_dim, head_dim), self.n_heads, scaled=False)
        u = _convolved(g, blk, u)
        read = g.split(g.linear(u, f"{blk}ssm_x", rank + 2 * n), n, n, rank)
        b, c, dt = (g.norm(v, f"{blk}ssm_{what}_norm") for what, v in zip(("b", "c", "dt"), read, strict=True))
        dt = g.linear(dt, f"{blk}ssm_dt", self.n_heads)
        y = g.rec(SSMScan2(x=u, dt=dt, b=b, c=c, a=Weight(f"{blk}ssm_a"), d=Weight(f"{blk}ssm_d")))
        return g.linear(g.rec(GatedActivation(gate=z, up=y)), f"{blk}ssm_out", g.hp.n_embd, scaled=False)


def _convolved(g: Graph, blk: str, x: Value) -> Value:
    weight, bias = Weight(f"{blk}ssm_conv1d.weight"), g.optional(f"{blk}ssm_conv1d.bias")
    return g.rec(Activation(x=g.rec(ShortConv(x=x, weight=weight, bias=bias)), act="silu"))
