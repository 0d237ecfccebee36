"""Tiny models: programs recorded over declared shapes, with random weights in any format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

from pyllm.gguf.tensor import TensorInfo
from pyllm.program import Program, Recorder, Value, Weight, as_inv_freq
from pyllm.program.op import Shaped
from pyllm.program.ops.attention import Attention
from pyllm.program.ops.conv import ShortConv
from pyllm.program.ops.delta import DeltaRule
from pyllm.program.ops.elementwise import Add, Scale, SoftCap
from pyllm.program.ops.embed import Embed
from pyllm.program.ops.experts import MixtureOfExperts
from pyllm.program.ops.gate import Activation, GatedActivation
from pyllm.program.ops.linear import Linear
from pyllm.program.ops.norm import RMSNorm
from pyllm.program.ops.rope import Rope
from pyllm.program.ops.select import SelectRows, Slice
from pyllm.testing.tensors import random_tensor


@dataclass
class Model:
    """A program over declared tensors; `tensors(format)` generates them, so one program serves all formats.

    Matrices have the requested format, vectors stay F32. Weights of norms are about 1, decays (`ssm_a`) about -1.
    """

    shapes: dict[str, tuple[int, ...]]
    program: Program
    scales: dict[str, float] = field(default_factory=dict)
    """Standard deviation of a tensor's values, where it is not 1 / sqrt(columns)."""

    def tensors(self, fmt: str = "F32", seed: int = 0) -> dict[str, TensorInfo]:
        out = {}
        for name, shape in self.shapes.items():
            vector = len(shape) == 1
            std = self.scales.get(name, 0.2 if vector else shape[-1] ** -0.5)
            mean = 1.0 if name.endswith("norm.weight") else -1.0 if name.endswith("ssm_a") else 0.0
            out[name] = random_tensor(name, shape, "F32" if vector else fmt, std=std, mean=mean, seed=seed)
        return out


class Builder(Recorder):
    """A recorder with tensors declared on the way: `b.t("w", 64, 32)` returns the name."""

    def __init__(self) -> None:
        self.declared: dict[str, Shaped] = {}
        super().__init__(tensors=self.declared)

    def t(self, name: str, *shape: int) -> Weight:
        """Declare a tensor, outermost axis first."""
        self.declared[name] = SimpleNamespace(shape=shape)
        return Weight(name)

    def model(self, hidden: Value, logits: Value | None, n_layers: int = 1, **scales: float) -> Model:
        """The recorded program as a model; `scales` as in `Model`."""
        (n_vocab, _) = next(iter(self.declared.values())).shape
        program = self.finish(hidden, logits, n_layers=n_layers, n_vocab=n_vocab)
        return Model({n: tuple(s.shape) for n, s in self.declared.items()}, program, scales)


Record = Callable[[Builder, Value], Value]
"""Records the ops of a case: `record(builder, x [tokens, width])`; returns the value to compare."""


def one_op(record: Record, *, width: int = 64, n_vocab: int = 96, embed_std: float = 1.0) -> Model:
    """A program that embeds, runs the ops of `record`, and returns their value as logits; of the output rows, selected
    last unless `record` does so."""
    b = Builder()
    x = b(Embed(table=b.t("table", n_vocab, width)))
    b.layer = 0
    y = record(b, x)
    b.layer = 1
    rows = y if y.id in b.selected else b(SelectRows(x=y))
    return b.model(rows, rows, table=embed_std)


MIXED = {
    "output.": "Q8_0", "token_embd": "Q5_0", "attn_q": "Q4_1", "attn_k": "IQ4_XS", "attn_v": "NVFP4",
    "attn_output": "Q2_K", "ffn_gate": "Q3_K", "ffn_up": "IQ2_XS", "ffn_down": "Q6_K", "blk.1.attn_q": "Q1_0",
    "blk.1.attn_k": "MXFP4", "blk.1.attn_v": "Q5_K",
}  # fmt: skip
"""Formats of all kinds, by parts of tensors' names, the last match counts: covers every way of packing weights."""


def mixed_tensors(model: Model) -> dict[str, TensorInfo]:
    """A transformer's tensors in the formats of MIXED, unmatched ones in F32."""
    made = {f: model.tensors(f) for f in {*MIXED.values(), "F32"}}
    chosen = {name: [f for part, f in MIXED.items() if part in name] for name in model.shapes}
    return {name: made[fs[-1] if fs else "F32"][name] for name, fs in chosen.items()}


@dataclass(frozen=True)
class Shape:
    """Sizes and options of `transformer`, a complete small model."""

    n_layers: int = 2
    n_embd: int = 256
    n_heads: int = 4
    n_kv_heads: int = 2
    head_dim: int = 64
    n_ff: int = 512
    n_vocab: int = 160
    n_rot: int = 64
    interleaved: bool = False
    bias: bool = False
    qk_norm: bool = False
    window: int = 0
    softcap: float = 0.0
    sinks: bool = False
    n_experts: int = 0
    n_used: int = 2
    act: str = "silu"
    recurrent: bool = False
    """All layers but the last have a convolution and the gated delta rule in place of attention."""
    tied: bool = False
    head: bool = True
    logit_cap: float = 0.0


def transformer(shape: Shape = Shape()) -> Model:
    """A decoder of these sizes; output rows are selected after the last attention, as in architectures."""
    s, b = shape, Builder()
    x = b(Embed(table=b.t("token_embd.weight", s.n_vocab, s.n_embd)))
    for il in range(s.n_layers):
        b.layer = il
        x = _block(b, s, il, x)
    b.layer = s.n_layers
    hidden = b(RMSNorm(x=x, weight=b.t("output_norm.weight", s.n_embd), eps=1e-5))
    if not s.head:
        return b.model(hidden, None, s.n_layers, **{"token_embd.weight": 0.5})
    table = Weight("token_embd.weight") if s.tied else b.t("output.weight", s.n_vocab, s.n_embd)
    logits = b(Linear(x=hidden, weight=table))
    if s.logit_cap:
        logits = b(SoftCap(x=logits, cap=s.logit_cap))
    return b.model(hidden, logits, s.n_layers, **{"token_embd.weight": 0.5})


Name = Callable[..., Weight]
"""Declares a layer's tensor: name(stem, *shape)."""
Product = Callable[[Value, str, int], Value]
"""A layer's product: linear(x, stem, rows)."""


def _block(b: Builder, s: Shape, il: int, x: Value) -> Value:
    def name(stem: str, *shape: int) -> Weight:
        return b.t(f"blk.{il}.{stem}", *shape)

    def linear(y: Value, stem: str, rows: int) -> Value:
        bias = name(f"{stem}.bias", rows) if s.bias else None
        return b(Linear(x=y, weight=name(f"{stem}.weight", rows, y.width), bias=bias))

    h = b(RMSNorm(x=x, weight=name("attn_norm.weight", s.n_embd), eps=1e-5))
    mix = _delta if s.recurrent and il < s.n_layers - 1 else _attention
    a = mix(s, il, h, b, name, linear)
    if il == s.n_layers - 1:
        x, a = b(SelectRows(x=x)), b(SelectRows(x=a))
    x = b(Add(a=x, b=linear(a, "attn_output", s.n_embd)))
    h = b(RMSNorm(x=x, weight=name("ffn_norm.weight", s.n_embd), eps=1e-5))
    if s.n_experts:
        router = b(Linear(x=h, weight=name("ffn_gate_inp.weight", s.n_experts, s.n_embd)))
        inner, outer = (s.n_experts, s.n_ff, s.n_embd), (s.n_experts, s.n_embd, s.n_ff)
        f = b(MixtureOfExperts(
            x=h, router=router, gate=name("ffn_gate_exps.weight", *inner), up=name("ffn_up_exps.weight", *inner),
            down=name("ffn_down_exps.weight", *outer), n_used=s.n_used, n_ff=s.n_ff, normalize=True, act=s.act,
        ))  # fmt: skip
    else:
        gate, up = linear(h, "ffn_gate", s.n_ff), linear(h, "ffn_up", s.n_ff)
        f = linear(b(GatedActivation(gate=gate, up=up, act=s.act)), "ffn_down", s.n_embd)
    return b(Add(a=x, b=f))


def _attention(s: Shape, il: int, h: Value, b: Builder, name: Name, linear: Product) -> Value:
    q, k, v = (
        linear(h, f"attn_{n}", heads * s.head_dim)
        for n, heads in (("q", s.n_heads), ("k", s.n_kv_heads), ("v", s.n_kv_heads))
    )
    if s.qk_norm:
        q, k = (
            b(RMSNorm(x=y, weight=name(f"attn_{n}_norm.weight", s.head_dim), eps=1e-5, group=s.head_dim))
            for n, y in (("q", q), ("k", k))
        )
    inv_freq = as_inv_freq([10000.0 ** (-2 * i / s.n_rot) for i in range(s.n_rot // 2)])
    q, k = (b(Rope(x=y, head_dim=s.head_dim, inv_freq=inv_freq, interleaved=s.interleaved)) for y in (q, k))
    return b(Attention(
        q=q, k=k, v=v, n_heads=s.n_heads, n_kv_heads=s.n_kv_heads, head_dim=s.head_dim, v_head_dim=s.head_dim,
        scale=s.head_dim**-0.5, window=s.window if il % 2 == 0 else 0, softcap=s.softcap,
        sinks=name("attn_sinks.weight", s.n_heads) if s.sinks else None,
    ))  # fmt: skip


def _delta(s: Shape, il: int, h: Value, b: Builder, name: Name, linear: Product) -> Value:
    n, n_keys, dim = s.n_heads, s.n_kv_heads, s.head_dim
    keys = n_keys * dim
    qkv = linear(h, "attn_qkv", 2 * keys + n * dim)
    qkv = b(Activation(x=b(ShortConv(x=qkv, weight=name("ssm_conv1d.weight", qkv.width, 4))), act="silu"))
    q, k = (
        b(RMSNorm(x=b(Slice(x=qkv, start=start, width=keys)), weight=None, eps=1e-6, group=dim)) for start in (0, keys)
    )
    decay, beta = (
        b(Activation(x=linear(h, stem, n), act=act))
        for stem, act in (("ssm_alpha", "softplus"), ("ssm_beta", "sigmoid"))
    )
    return b(DeltaRule(
        q=q, k=b(Scale(x=k, factor=dim**-0.5)), v=b(Slice(x=qkv, start=2 * keys, width=n * dim)),
        decay=b(Scale(x=decay, factor=-0.2)), beta=beta, n_heads=n, n_key_heads=n_keys, key_dim=dim, value_dim=dim,
        scale=dim**-0.5,
    ))  # fmt: skip
