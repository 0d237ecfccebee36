"""Values, ops, and the program that they make."""

from __future__ import annotations

from dataclasses import dataclass, fields

ACTIVATIONS = ("silu", "gelu", "gelu_erf", "relu", "swiglu_oai")
GATINGS = ("softmax", "sigmoid", "softmax_chosen")


@dataclass(frozen=True, slots=True)
class Value:
    """A float32 matrix [tokens, width] that an op computes."""

    id: int
    width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One step of the pass. `layer` is the block it belongs to: -1 before the first, n_layers after the last."""

    out: Value
    layer: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Embed(Op):
    """out = table[tokens] * scale. table [n_vocab, n_embd]."""

    table: str
    scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RMSNorm(Op):
    """out = x / sqrt(mean(x^2) + eps) * weight, over consecutive groups of `group` columns.

    `group` is the width for an ordinary norm and head_dim for a norm of each head; weight [group] (or [width], when
    a file holds one weight per column), or None for none.
    """

    x: Value
    weight: str | None
    eps: float
    group: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear(Op):
    """out = x @ weight.T + bias. weight [out.width, x.width], bias [out.width]."""

    x: Value
    weight: str
    bias: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope(Op):
    """Rotary positions on the first 2 * len(inv_freq) columns of each head of `head_dim` columns.

    angle[t, i] = position[t] * inv_freq[i]; cos and sin are both multiplied by `mscale` (YaRN, longrope).
    Pairs are (i, i + n_rot/2), or (2i, 2i + 1) where `interleaved`. Scalings are already in inv_freq.
    """

    x: Value
    head_dim: int
    inv_freq: tuple[float, ...]
    mscale: float = 1.0
    interleaved: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention(Op):
    """Stores k and v in KV cache `cache` at each token's position, then out = causal attention of q over its sequence.

    q [tokens, n_heads * head_dim], k [tokens, n_kv_heads * head_dim], v [tokens, n_kv_heads * v_head_dim],
    out [tokens, n_heads * v_head_dim]. Head h reads KV head h * n_kv_heads // n_heads. A token at position p sees
    positions max(0, p - window + 1) .. p (window 0: all). Scores are (q . k) * scale, then softcap * tanh(. / softcap)
    if softcap is not 0. `sinks` [n_heads] names logits that join each head's softmax without a value.
    """

    q: Value
    k: Value
    v: Value
    cache: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    v_head_dim: int
    scale: float
    window: int = 0
    softcap: float = 0.0
    sinks: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Add(Op):
    """out = a + b."""

    a: Value
    b: Value


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale(Op):
    """out = x * factor."""

    x: Value
    factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice(Op):
    """out = x[:, start : start + out.width]; for files that store several projections as one matrix."""

    x: Value
    start: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedActivation(Op):
    """out = act(gate) * up. `act`: "silu", "gelu" (tanh form, as ggml's), "gelu_erf", "relu", or "swiglu_oai".

    swiglu_oai (gpt-oss): g = min(gate, 7), u = clip(up, -7, 7), out = g * sigmoid(1.702 g) * (u + 1).
    """

    gate: Value
    up: Value
    act: str = "silu"


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureOfExperts(Op):
    """out = sum over the chosen experts e of p[e] * down_e(act(gate_e(x)) * up_e(x)).

    `router` [tokens, n_experts] are logits. `gating`: "softmax" (over all experts, then the n_used largest),
    "sigmoid", or "softmax_chosen" (the n_used largest logits, softmax over those). `normalize` divides the chosen
    weights by their sum; `weight_scale` multiplies them. `choice_bias` [n_experts] is added for choosing only.
    gate, up [n_experts, n_ff, width], down [n_experts, width, n_ff]; their biases [n_experts, ...] or None, and
    scales [n_experts] or None, which multiply an expert's product before its bias is added.
    """

    x: Value
    router: Value
    gate: str
    up: str
    down: str
    n_experts: int
    n_used: int
    n_ff: int
    gating: str = "softmax"
    normalize: bool = False
    weight_scale: float = 1.0
    act: str = "silu"
    choice_bias: str | None = None
    gate_bias: str | None = None
    up_bias: str | None = None
    down_bias: str | None = None
    gate_scale: str | None = None
    up_scale: str | None = None
    down_scale: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectRows(Op):
    """out = x[rows]: from here on only the rows whose logits are wanted."""

    x: Value


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftCap(Op):
    """out = cap * tanh(x / cap)."""

    x: Value
    cap: float


@dataclass(frozen=True, slots=True)
class KVSpec:
    """Shape of one layer's KV cache. `window` 0: all positions are seen."""

    n_kv_heads: int
    head_dim: int
    v_head_dim: int
    window: int = 0


@dataclass(frozen=True, slots=True)
class Stage:
    """A device's ops from `start` to before `stop`, which run without waiting for another device.

    What a stage receives or computes is there for all later stages of the step. No value is received twice.
    """

    start: int
    stop: int
    receives: tuple[Value, ...] = ()
    """Values of other devices that are given when the stage starts."""
    sends: tuple[Value, ...] = ()
    """Values that other devices, or the caller, may want when it is over."""


@dataclass(frozen=True, slots=True)
class Program:
    """A recorded pass. `hidden` [rows, n_embd] is the final normed state, `logits` [rows, n_vocab] the output.

    Where a model is split over devices, each has a program of its own: the ops that it computes, in stages (`cuts`),
    with KV caches numbered anew. `hidden` and `logits` are the whole model's then; only some part computes them.
    """

    ops: tuple[Op, ...]
    n_layers: int
    n_embd: int
    n_vocab: int
    kv: tuple[KVSpec, ...]
    hidden: Value
    logits: Value
    cuts: tuple[Stage, ...] = ()
    """The stages of a part; empty for a whole model."""
    given_rows: frozenset[int] = frozenset()
    """Ids of received values that have one row per wanted row, not one per token."""

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages in order; all ops are in one of them."""
        return self.cuts or (Stage(0, len(self.ops), sends=tuple(dict.fromkeys((self.hidden, self.logits)))),)

    def by_row(self) -> frozenset[int]:
        """Ids of all values that have one row per wanted row."""
        found = set(self.given_rows)
        for op in self.ops:
            if isinstance(op, SelectRows) or any(v.id in found for v in inputs(op)):
                found.add(op.out.id)
        return frozenset(found)

    def weights(self) -> list[str]:
        """Names of all tensors that the ops use, in order of first use."""
        seen: dict[str, None] = {}
        for op in self.ops:
            for name in weight_names(op):
                seen.setdefault(name)
        return list(seen)


_WEIGHT_FIELDS = frozenset(["table", "weight", "bias", "sinks", "gate", "up", "down", "choice_bias"]) | {
    f"{part}_{what}" for part in ("gate", "up", "down") for what in ("bias", "scale")
}


def weight_names(op: Op) -> list[str]:
    """Names of the tensors that one op uses."""
    values = ((f.name, getattr(op, f.name)) for f in fields(op))
    return [v for name, v in values if name in _WEIGHT_FIELDS and isinstance(v, str)]


def inputs(op: Op) -> list[Value]:
    """The values that one op reads, in field order."""
    return [v for f in fields(op) if f.name != "out" and isinstance(v := getattr(op, f.name), Value)]
