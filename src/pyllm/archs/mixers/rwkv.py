"""RWKV: blends of a token and the one before it, into linear attention (time mix) or a network (channel mix)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pyllm.archs.graph import Graph
from pyllm.program import Value, Weight
from pyllm.program.ops.dot import Dot
from pyllm.program.ops.elementwise import MulWeight
from pyllm.program.ops.gate import Activation, GatedActivation
from pyllm.program.ops.linear import Linear
from pyllm.program.ops.linear_attention import LinearAttention
from pyllm.program.ops.norm import LayerNorm, RMSNorm
from pyllm.program.ops.shift import TokenShift
from pyllm.records import dataclass

_EPS_OF_HEADS = 64e-5
_LEAST_LENGTH = 1e-12
"""Of a vector that is made one of length 1."""


@dataclass(frozen=True, slots=True)
class ChannelMix:
    """channel_mix_value(relu2(channel_mix_key(blend of x))), gated by channel_mix_receptance if the file has it."""

    n_ff: int

    def __call__(self, g: Graph, blk: str, x: Value) -> Value:
        shift, stem = g.rec(TokenShift(x=x)), f"{blk}channel_mix_"
        k = g.linear(_blend(g, x, shift, Weight(f"{stem}lerp_k.weight")), f"{stem}key", self.n_ff)
        y = g.linear(_act(g, k, "relu2"), f"{stem}value", x.width)
        if not g.rec.has(f"{stem}receptance.weight"):
            return y
        r = g.linear(_blend(g, x, shift, Weight(f"{stem}lerp_r.weight")), f"{stem}receptance", x.width)
        return _product(g, r, y, "sigmoid")


@dataclass(frozen=True, slots=True)
class TimeMix6:
    """RWKV 6's (arXiv:2404.05892): blends and decays follow from the token.

    Without `time_mix_first`, the bonus of the token itself, it is gated linear attention, whose keys are multiplied by
    what a row forgets: models with RWKV 6 in place of the attention that they were trained with.
    """

    n_heads: int
    n_kv_heads: int
    head_dim: int

    def __call__(self, g: Graph, blk: str, x: Value) -> Value:
        w, k, v, r, gate = self._blends(g, blk, x)
        n, n_kv, stem = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim, f"{blk}time_mix_"
        r, k, v = (
            g.linear(y, stem + name, width)
            for y, name, width in ((r, "receptance", n), (k, "key", n_kv), (v, "value", n_kv))
        )
        low = _act(g, g.rec(Linear(x=w, weight=Weight(f"{stem}decay_w1.weight"))), "tanh")
        bias = g.vector(Weight(f"{stem}decay.weight"))
        decay = g.rec(Linear(x=low, weight=Weight(f"{stem}decay_w2.weight"), bias=bias))
        decay = g.times(_act(g, decay, "exp"), -1)
        has_bonus = g.rec.has(f"{stem}first.weight")
        y = g.rec(
            LinearAttention(
                q=r, k=k, v=v, decay=decay, n_heads=self.n_heads, n_key_heads=self.n_kv_heads, key_dim=self.head_dim,
                value_dim=self.head_dim, before=has_bonus, complement=not has_bonus,
                scale=1.0 if has_bonus else self.head_dim**-0.5,
            )
        )  # fmt: skip
        if has_bonus:
            y = g.add(y, _bonus(g, r, k, v, Weight(f"{stem}first.weight"), self.head_dim))
            y = _norm_of_heads(g, y, stem, self.head_dim)
        y = _product(g, g.linear(gate, f"{stem}gate", n), y, "silu" if has_bonus else "sigmoid")
        return g.linear(y, f"{stem}output", x.width)

    def _blends(self, g: Graph, blk: str, x: Value) -> list[Value]:
        """Inputs of decay, keys, values, receptance and gate: x + shift * (lerp + w2(tanh(w1(a blend)))), each with its
        lerp and w2."""
        stem, shift = f"{blk}time_mix_", g.rec(TokenShift(x=x))
        blend = _blend(g, x, shift, Weight(f"{stem}lerp_x.weight"))
        low = _act(g, g.rec(Linear(x=blend, weight=Weight(f"{stem}w1.weight"))), "tanh")
        rank = low.width // 5
        g.rec.require(f"{stem}w2.weight", (5, x.width, rank))
        out = []
        for i, (name, part) in enumerate(zip("wkvrg", g.split(low, *[rank] * 5), strict=True)):
            amount = g.rec(Linear(x=part, weight=g.item(f"{stem}w2.weight", i), bias=self._lerp(g, stem, i, name, x)))
            out.append(g.add(x, _product(g, amount, shift)))
        return out

    @staticmethod
    def _lerp(g: Graph, stem: str, i: int, name: str, x: Value) -> Weight | None:
        """A blend's vector: of its own, or the i-th of `lerp_fused`."""
        fused = f"{stem}lerp_fused.weight"
        if not g.rec.has(fused):
            return g.vector(Weight(f"{stem}lerp_{name}.weight"))
        g.rec.require(fused, (5, 1, 1, x.width))
        return g.item(fused, i)


@dataclass(frozen=True, slots=True)
class TimeMix7:
    """RWKV 7's (arXiv:2503.14456): each token replaces what its key held, at a rate of its own for each column; values
    are blends with the first layer's. The norm of heads and the gate may be missing."""

    n_heads: int
    head_dim: int

    def __call__(self, g: Graph, blk: str, x: Value) -> Value:
        stem, n = f"{blk}time_mix_", self.n_heads * self.head_dim
        r, w, k, v, a, *gate = self._blends(g, stem, x)
        r, k, values = (g.linear(y, stem + name, n) for y, name in ((r, "receptance"), (k, "key"), (v, "value")))
        v = self._with_first_values(g, stem, v, values)
        decay = g.times(_act(g, _low_rank(g, stem, "w", w, "tanh"), "sigmoid"), -math.exp(-0.5))
        rate = _low_rank(g, stem, "a", a)
        direction = self._direction(g, g.rec(MulWeight(x=k, weight=Weight(f"{stem}k_k.weight"))))
        replaced = g.rec(MulWeight(x=k, weight=Weight(f"{stem}k_a.weight")))
        k = g.add(g.add(k, _product(g, rate, replaced, "sigmoid")), g.times(replaced, -1))
        y = g.rec(
            LinearAttention(
                q=r, k=k, v=v, decay=decay, erase=g.times(direction, -1),
                insert=_product(g, rate, direction, "sigmoid"), n_heads=self.n_heads, n_key_heads=self.n_heads,
                key_dim=self.head_dim, value_dim=self.head_dim,
            )
        )  # fmt: skip
        if g.rec.has(f"{stem}ln.weight"):
            y = _norm_of_heads(g, y, stem, self.head_dim)
        y = g.add(y, _bonus(g, r, k, v, Weight(f"{stem}r_k.weight"), self.head_dim))
        if gate:
            low = _act(g, g.rec(Linear(x=gate[0], weight=Weight(f"{stem}g1.weight"))), "sigmoid")
            y = _product(g, g.rec(Linear(x=low, weight=Weight(f"{stem}g2.weight"))), y)
        return g.linear(y, f"{stem}output", x.width)

    @staticmethod
    def _blends(g: Graph, stem: str, x: Value) -> Sequence[Value]:
        """Inputs of receptance, decay, keys, values, rate, and of the gate if there is one."""
        shift, fused = g.rec(TokenShift(x=x)), f"{stem}lerp_fused.weight"
        n = 6 if g.rec.has(f"{stem}g1.weight") and g.rec.has(f"{stem}g2.weight") else 5
        g.rec.require(fused, (n, 1, 1, x.width), (6, 1, 1, x.width))
        return [_blend(g, x, shift, g.item(fused, i)) for i in range(n)]

    @staticmethod
    def _with_first_values(g: Graph, stem: str, x: Value, values: Value) -> Value:
        """Values, in part replaced by the first layer's."""
        first = g.once("values of the first layer", lambda: values)
        if first.id == values.id:
            return values
        difference = g.add(first, g.times(values, -1))
        return g.add(values, _product(g, _low_rank(g, stem, "v", x), difference, "sigmoid"))

    def _direction(self, g: Graph, k: Value) -> Value:
        """Keys whose heads have length 1."""
        n = self.head_dim
        return g.times(g.rec(RMSNorm(x=k, weight=None, eps=_LEAST_LENGTH**2 / n, group=n)), n**-0.5)


def _blend(g: Graph, x: Value, shift: Value, amount: Weight) -> Value:
    """x + amount * shift."""
    return g.add(x, g.rec(MulWeight(x=shift, weight=amount)))


def _act(g: Graph, x: Value, act: str) -> Value:
    return g.rec(Activation(x=x, act=act))


def _product(g: Graph, a: Value, b: Value, act: str = "identity") -> Value:
    """act(a) * b; a may have a number for each head."""
    return g.rec(GatedActivation(gate=a, up=b, act=act))


def _low_rank(g: Graph, stem: str, name: str, x: Value, act: str | None = None) -> Value:
    """w0 + w2(act(w1(x))), by the name of these."""
    low = g.rec(Linear(x=x, weight=Weight(f"{stem}{name}1.weight")))
    bias = g.vector(Weight(f"{stem}{name}0.weight"))
    return g.rec(Linear(x=_act(g, low, act) if act else low, weight=Weight(f"{stem}{name}2.weight"), bias=bias))


def _bonus(g: Graph, r: Value, k: Value, v: Value, weight: Weight, head_dim: int) -> Value:
    """(r * weight . k) v of each head: the token's own part beside the state."""
    return _product(g, g.rec(Dot(a=g.rec(MulWeight(x=r, weight=weight)), b=k, group=head_dim)), v)


def _norm_of_heads(g: Graph, y: Value, stem: str, head_dim: int) -> Value:
    weight, bias = (g.vector(Weight(f"{stem}ln.{what}")) for what in ("weight", "bias"))
    return g.rec(LayerNorm(x=y, weight=weight, bias=bias, eps=_EPS_OF_HEADS, group=head_dim))
