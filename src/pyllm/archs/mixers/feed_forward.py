"""Feed-forward: gated, or a mixture of experts."""

from __future__ import annotations

import math
from typing import Any, Literal, Self

import numpy as np

from pyllm.archs.decoder import Mixer
from pyllm.archs.graph import Graph
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.combine import Sum
from pyllm.errors import ModelError
from pyllm.program import Value, Weight
from pyllm.program.ops.dot import Dot
from pyllm.program.ops.elementwise import AddWeight, MulWeight, Scale
from pyllm.program.ops.experts import MixtureOfExperts
from pyllm.program.ops.gate import Activation, GatedActivation
from pyllm.program.ops.linear import Linear
from pyllm.program.ops.norm import LayerNorm
from pyllm.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class FFN:
    """ffn_down(act(ffn_gate(x)) * ffn_up(x)); gate and up may be one matrix, ffn_up. Without a gate, act(ffn_up(x))."""

    n_ff: int
    act: str = "silu"
    gated: bool = True
    parameters: tuple[float, ...] = ()
    """Parameters of an ungated activation."""
    limit: float = 0.0
    """Of a gated activation that has one."""
    deviations: float | None = None
    """The gate is what exceeds its mean by so many standard deviations, else 0; None: all of it."""
    kind: str = ""
    """Suffix of its tensors' names: "_shexp" for shared experts."""
    sub_norm: str | None = None
    """Norm before the last product."""
    biases: bool = True
    """The file's biases apply."""
    scaled: bool | Literal["down"] = False
    """The file's scales `ffn_*.scale` are used; llama.cpp reads them in some families only."""

    @classmethod
    def read(cls, hp: HParams, il: int, **options: Any) -> Self:
        """Layer `il`'s, with the sizes of the file."""
        n_ff = hp.per_layer("feed_forward_length")[il]
        if not n_ff:
            raise ModelError(f"{hp.arch}.feed_forward_length is 0 in layer {il}")
        return cls(n_ff=n_ff, **options)

    def __call__(self, g: Graph, blk: str, x: Value) -> Value:
        y = self._gated(g, blk, x) if self.gated else self._ungated(g, blk, x)
        y = g.norm(y, self.sub_norm and blk + self.sub_norm)
        return self._linear(g, y, f"{blk}ffn_down{self.kind}", g.hp.n_embd)

    def _ungated(self, g: Graph, blk: str, x: Value) -> Value:
        """Ungated activations [tokens, n_ff]."""
        y = self._linear(g, x, f"{blk}ffn_up{self.kind}", self.n_ff)
        y = g.rec(Activation(x=y, act=self.act, parameters=self.parameters))
        scales = f"{blk}ffn.act.scales"  # AWQ's
        return g.rec(MulWeight(x=y, weight=g.inverse(scales))) if g.rec.has(scales) else y

    def _gated(self, g: Graph, blk: str, x: Value) -> Value:
        """Gated activations [tokens, n_ff]."""
        rec, n_ff, gate, up = g.rec, self.n_ff, f"{blk}ffn_gate{self.kind}", f"{blk}ffn_up{self.kind}"
        if not rec.has(f"{gate}.weight") and rec.shape(f"{up}.weight")[:1] == (2 * n_ff,):
            gated, ungated = g.split(self._linear(g, x, up, 2 * n_ff), n_ff, n_ff)
        else:
            gated, ungated = self._linear(g, x, gate, n_ff), self._linear(g, x, up, n_ff)
        if self.deviations is not None:
            gated = _largest(g, gated, self.deviations)
        return rec(GatedActivation(gate=gated, up=ungated, act=self.act, limit=self.limit))

    def _linear(self, g: Graph, x: Value, stem: str, width: int) -> Value:
        """A product whose scale also applies to the bias, as in llama.cpp."""
        g.rec.require_rows(f"{stem}.weight", width)
        y = g.rec(
            Linear(x=x, weight=Weight(f"{stem}.weight"), bias=g.optional(f"{stem}.bias") if self.biases else None)
        )
        scale = g.scale(stem, self.scaled is True or (self.scaled == "down" and "ffn_down" in stem))
        return g.rec(Scale(x=y, factor=scale)) if scale else y


def _largest(g: Graph, x: Value, deviations: float) -> Value:
    """relu(x - mean - deviations * s), s^2 = sum of (x - mean)^2 / (n - 1) over the n columns of a row.

    With y = (x - mean) / d of the usual deviation d that is d * relu(y - deviations * s / d), and d = x . y / n.
    """
    n = x.width
    y = g.rec(LayerNorm(x=x, weight=None, eps=1e-30))
    d = g.rec(Scale(x=g.rec(Dot(a=x, b=y, group=n)), factor=1 / n))
    least = deviations * math.sqrt(n / (n - 1))
    bound = g.made(f"-{least:g}", np.array([-least]))
    above = g.rec(Activation(x=g.rec(AddWeight(x=y, weight=bound)), act="relu"))
    return g.rec(GatedActivation(gate=d, up=above, act="identity"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """A mixture of experts: ffn_gate_exps, ffn_up_exps and ffn_down_exps, chosen by ffn_gate_inp. They are between
    ffn_latent_down and ffn_latent_up, if the file has those. Without a gate, as `FFN`."""

    n_experts: int
    n_used: int
    n_ff: int
    gating: str = "softmax"
    normalize: bool = True
    weight_scale: float = 1.0
    act: str = "silu"
    gated: bool = True
    limit: float = 0.0
    """As for `FFN`."""
    weighs_input: bool = False
    """What an expert gets is multiplied by its weight, not what it gives."""
    kind: str = "_exps"
    """Suffix of its tensors' names."""
    sharing: int = 1
    """Experts that share matrices."""
    n_groups: int = 0
    """Groups of experts, of which a token chooses among the best `n_groups_used`; 0: among all."""
    n_groups_used: int = 0
    routed_by_layer_input: bool = False
    """The router reads the layer's input, not the experts' input."""
    scaled: bool = False
    """As for `FFN`."""
    norm: str | None = None
    """Norm of the experts' input, not of the router's."""
    router_norm: str | None = None
    """Norm of the router's input, by its tensor under the layer's name; logits are then divided by sqrt(n_embd)."""

    @classmethod
    def read(cls, hp: HParams, il: int, **options: Any) -> Self:
        """Layer `il`'s, with the sizes of the file."""
        options.setdefault("n_ff", hp.n_ff_expert(il))
        options.setdefault("n_used", hp.n_experts_used(il))
        if (n_groups := hp.integer("expert_group_count", 0)) > 1:
            options |= {"n_groups": n_groups, "n_groups_used": hp.integer("expert_group_used_count")}
        return cls(n_experts=hp.n_experts, weight_scale=hp.number("expert_weights_scale", 1.0), **options)

    def __call__(self, g: Graph, blk: str, x: Value) -> Value:
        return self.mix(g, blk, x, self.route(g, blk, g.layer_input if self.routed_by_layer_input else x))

    def mix(self, g: Graph, blk: str, x: Value, router: Value) -> Value:
        """The mixture of x, chosen by the router's logits."""
        x = self._latent(g, f"{blk}ffn_latent_down", g.norm(x, self.norm and blk + self.norm))
        gate, up = self._gate_up(g, blk)
        y = g.rec(
            MixtureOfExperts(
                x=x,
                router=router,
                gate=gate,
                up=up,
                down=Weight(f"{blk}ffn_down{self.kind}.weight"),
                choice_bias=g.vector(g.optional(f"{blk}exp_probs_b.bias", f"{blk}exp_probs_b")),
                gate_bias=g.optional(f"{blk}ffn_gate{self.kind}.bias") if gate else None,
                up_bias=g.optional(f"{blk}ffn_up{self.kind}.bias"),
                down_bias=g.optional(f"{blk}ffn_down{self.kind}.bias"),
                gate_scale=self._scale(g, blk, "gate") if gate else None,
                up_scale=self._scale(g, blk, "up"),
                down_scale=self._scale(g, blk, "down"),
                n_used=self.n_used,
                n_ff=self.n_ff,
                gating=self.gating,
                normalize=self.normalize,
                weight_scale=self.weight_scale,
                act=self.act,
                limit=self.limit,
                weighs_input=self.weighs_input,
                sharing=self.sharing,
                n_groups=self.n_groups,
                n_groups_used=self.n_groups_used,
            )
        )
        return self._latent(g, f"{blk}ffn_latent_up", y)

    def _latent(self, g: Graph, stem: str, x: Value) -> Value:
        """x in a space of other width, if the file has the matrix."""
        if not g.rec.has(f"{stem}.weight"):
            return x
        return g.linear(x, stem, g.rec.shape(f"{stem}.weight")[0], scaled=False)

    def route(self, g: Graph, blk: str, x: Value) -> Value:
        """Router logits of the experts."""
        if self.router_norm is None:
            return g.linear(x, f"{blk}ffn_gate_inp", self.n_experts)
        x = g.norm(x, blk + self.router_norm)
        logits = g.linear(x, f"{blk}ffn_gate_inp", self.n_experts, scaled=False)
        return g.times(logits, 1 / math.sqrt(g.hp.n_embd))

    def _gate_up(self, g: Graph, blk: str) -> tuple[Weight | None, Weight]:
        gate, up, fused = (f"{blk}ffn_{part}{self.kind}.weight" for part in ("gate", "up", "gate_up"))
        if not self.gated:
            return None, Weight(up)
        if not g.rec.has(fused):
            return Weight(gate), Weight(up)
        n = self.n_ff
        g.rec.require(fused, (self.n_experts // self.sharing, 2 * n, g.hp.n_embd))
        return g.rows(fused, 0, n), g.rows(fused, n, 2 * n)

    def _scale(self, g: Graph, blk: str, name: str) -> Weight | None:
        """Scales of the experts [n_experts]; with a fused matrix, those of "up" apply to both halves."""
        fused = g.rec.has(f"{blk}ffn_gate_up{self.kind}.weight") and name != "down"
        stem = f"{blk}ffn_{name}{self.kind}" if not fused else f"{blk}ffn_gate_up{self.kind}"
        scale = f"{blk}ffn_up{self.kind}.scale" if fused else f"{stem}.scale"
        return g.optional(scale) if g.uses_scale(stem, self.scaled) else None


_LEAST_LIMIT = 1e-6
"""Limits up to this one are none, as in llama.cpp."""


def limits(hp: HParams, key: str) -> list[float]:
    """A limit of activations for each layer; 0: none."""
    found = hp.numbers(key) if f"{hp.arch}.{key}" in hp.metadata else [0.0] * hp.n_layers
    return [limit if limit > _LEAST_LIMIT else 0.0 for limit in found]


def limited(limit: float) -> dict[str, Any]:
    """Options of a mixer whose activation is limited."""
    return {"act": "swiglu_clamp_act", "limit": limit} if limit else {}


def mixture(hp: HParams, il: int, *, n_shared: int | None = None, scale_of_sum: float = 1.0, **options: Any) -> Mixer:
    """Layer `il`'s experts and shared experts of `n_shared` columns (None: the file's number). `scale_of_sum`
    multiplies their sum."""
    experts = Experts.read(hp, il, **options)
    if n_shared is None:
        n_shared = hp.integer("expert_shared_feed_forward_length", 0)
        n_shared = n_shared or hp.n_ff_expert(il) * hp.integer("expert_shared_count", 0)
    if not n_shared:
        return experts
    shared = FFN(n_ff=n_shared, act=experts.act, gated=experts.gated, kind="_shexp", scaled=experts.scaled)
    return Sum((experts, shared), scale=scale_of_sum)


def feed_forward(hp: HParams, il: int, *, act: str = "silu", scaled: bool = False, **experts: Any) -> Mixer:
    """Layer `il`'s experts, if the file has any and the layer is not one of the first dense ones; else a plain
    network."""
    if hp.n_experts and il >= hp.integer("leading_dense_block_count", 0):
        return mixture(hp, il, act=act, scaled=scaled, **experts)
    return FFN.read(hp, il, act=act, scaled=scaled)
