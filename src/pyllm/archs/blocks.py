"""What decoder families share: one transformer, whose options are the attributes that a subclass sets.

Biases, fused projections, tied output and rotary factors are options of the file: they are used where their tensors
are there. Everything else that differs between families is an attribute of `Transformer`, or one of its methods.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from pyllm.archs.hparams import HParams
from pyllm.archs.rope import Scaling
from pyllm.errors import ModelError
from pyllm.gguf.tensor import TensorInfo
from pyllm.program import Program, Recorder, Value, Weight
from pyllm.program.ops.attention import Attention
from pyllm.program.ops.elementwise import Add, Scale, SoftCap
from pyllm.program.ops.embed import Embed
from pyllm.program.ops.experts import MixtureOfExperts
from pyllm.program.ops.gate import GatedActivation
from pyllm.program.ops.linear import Linear
from pyllm.program.ops.norm import RMSNorm
from pyllm.program.ops.rope import Rope
from pyllm.program.ops.select import SelectRows, Slice
from pyllm.quant import formats

_MOST_LAYERS = 4096
_MOST_HEAD_DIM = 1 << 16


class Transformer:
    """A decoder of `n_layers` blocks, attention and feed-forward, each added to the stream."""

    attn_norm: ClassVar[str | None] = "attn_norm"
    """Tensor of the norm before attention, None: the stream goes in as it is."""
    attn_post_norm: ClassVar[str | None] = None
    """Norm of what attention adds to the stream."""
    ffn_norm: ClassVar[str | None] = "ffn_norm"
    ffn_post_norm: ClassVar[str | None] = None
    qk_norm: ClassVar[Literal["none", "head", "width"]] = "none"
    """Norm of queries and keys before rotation: of each head, or over all heads."""
    act: ClassVar[str] = "silu"
    embed_scaled: ClassVar[bool] = False
    """Embeddings are multiplied by sqrt(n_embd)."""
    tied_output: ClassVar[bool | None] = None
    """Output matrix: the embedding table (True), its own (False), its own where the file has one (None)."""

    rope_interleaved: ClassVar[bool] = False
    """Rotated pairs are neighbours, as in files converted from Meta's layout."""
    no_rope_period: ClassVar[int] = 0
    """Every n-th layer goes without positions (0: none does)."""
    window_period: ClassVar[int] = 0
    """Sliding windows on all layers but every n-th, unless the file has a pattern (0: no windows)."""
    window_default: ClassVar[int] = 0
    """Window where the file names none."""
    window_rope_own: ClassVar[bool] = True
    """Windowed layers have a rotary base of their own, where the file names one."""
    window_rope_base: ClassVar[float | None] = None
    """That base where the file names none (None: as the other layers)."""
    window_rope_scaled: ClassVar[bool] = True
    """Rope scaling holds for windowed layers too."""
    attn_softcap: ClassVar[float | None] = None
    """Default of the soft cap on attention scores, for families that read it (None: they do not)."""
    logit_softcap: ClassVar[float | None] = None
    """Default of the soft cap on logits, likewise."""
    sinks: ClassVar[bool] = False
    """Each head has a sink, `attn_sinks.weight`."""

    needs_experts: ClassVar[bool] = False
    """There is no dense model of this family."""
    ffn_scaled: ClassVar[bool] = False
    """Feed-forward matrices have the scales of the file, `ffn_*.scale`; llama.cpp reads them in some families only."""
    expert_gating: ClassVar[str] = "softmax"
    expert_normalize: ClassVar[bool] = True

    def __init__(self, hp: HParams, tensors: Mapping[str, TensorInfo], n_ctx: int | None) -> None:
        self.hp, self.tensors = hp, tensors
        self.rec = Recorder(tensors)
        self.n_layers = hp.integer("block_count", most=_MOST_LAYERS)
        self.n_ctx_train = hp.integer("context_length", most=1 << 31)
        self.n_ctx = self.n_ctx_train if n_ctx is None else n_ctx
        if self.n_ctx < 1:
            raise ModelError(f"a context of {self.n_ctx} positions holds nothing")
        self.n_embd = hp.integer("embedding_length")
        self.eps = hp.number("attention.layer_norm_rms_epsilon")
        if not 0 < self.eps < 1:
            raise ModelError(f"{hp.arch}.attention.layer_norm_rms_epsilon is {self.eps}, not between 0 and 1")
        self._read_attention()
        self._read_experts()

    def _read_attention(self) -> None:
        hp, n = self.hp, self.n_layers
        self.n_heads = hp.per_layer("attention.head_count", n)
        self.n_kv_heads = hp.per_layer("attention.head_count_kv", n, self.n_heads)
        default = self.n_embd // self.n_heads[0] or None
        self.head_dim = hp.integer("attention.key_length", default, most=_MOST_HEAD_DIM)
        self.v_head_dim = hp.integer("attention.value_length", default, most=_MOST_HEAD_DIM)
        self.n_rot = hp.integer("rope.dimension_count", self.head_dim, most=_MOST_HEAD_DIM)
        if self.n_rot > self.head_dim:
            raise ModelError(f"{hp.arch}.rope.dimension_count is {self.n_rot}, more than a head's {self.head_dim}")
        window = hp.integer("attention.sliding_window", self.window_default, most=1 << 31) if self.window_period else 0
        pattern = hp.pattern("attention.sliding_window_pattern", n, self.window_period)
        self.windows = [window if flag else 0 for flag in pattern]

    def _read_experts(self) -> None:
        hp = self.hp
        self.n_experts = hp.integer("expert_count", 0, most=1 << 16)
        self.n_experts_used = hp.integer("expert_used_count", 0, most=1 << 16)
        if (self.n_experts or self.needs_experts) and not 0 < self.n_experts_used <= self.n_experts:
            raise ModelError(f"{hp.arch} uses {self.n_experts_used} of {self.n_experts} experts")
        if self.n_experts:
            self.n_ff_expert = hp.integer("expert_feed_forward_length", 0) or hp.integer("feed_forward_length")
        else:
            self.n_ff = hp.per_layer("feed_forward_length", self.n_layers)

    # --- the pass

    def record(self) -> Program:
        """The whole pass. Rows are selected in the last block, right after its attention."""
        rec = self.rec
        x = rec(Embed(table=Weight("token_embd.weight"), scale=math.sqrt(self.n_embd) if self.embed_scaled else 1.0))
        if x.width != self.n_embd:
            raise ModelError(
                f"token_embd.weight has {x.width} columns, {self.hp.arch}.embedding_length is {self.n_embd}"
            )
        for il in range(self.n_layers):
            rec.layer = il
            x = self.block(il, x)
        rec.layer = self.n_layers
        hidden = self.norm(x, "output_norm")
        return rec.finish(hidden, self.output(hidden), n_layers=self.n_layers)

    def block(self, il: int, x: Value) -> Value:
        """Block `il`: [tokens, n_embd] → the same, of selected rows in the last block."""
        rec, blk = self.rec, f"blk.{il}."
        attended = self.attention(il, self._norm(blk, self.attn_norm, x))
        if il == self.n_layers - 1:
            x, attended = rec(SelectRows(x=x)), rec(SelectRows(x=attended))
        added = self.linear(attended, f"{blk}attn_output", self.n_embd)
        x = rec(Add(a=x, b=self._norm(blk, self.attn_post_norm, added)))
        added = self.feed_forward(il, self._norm(blk, self.ffn_norm, x))
        return rec(Add(a=x, b=self._norm(blk, self.ffn_post_norm, added)))

    def attention(self, il: int, x: Value) -> Value:
        """[tokens, n_embd] → [tokens, n_heads * v_head_dim], before the output projection."""
        rec, blk = self.rec, f"blk.{il}."
        q, k, v = self.qkv(il, x)
        if self.qk_norm != "none":
            group = self.head_dim if self.qk_norm == "head" else 0
            q, k = self.norm(q, f"{blk}attn_q_norm", group), self.norm(k, f"{blk}attn_k_norm", group)
        if not self.no_rope_period or (il + 1) % self.no_rope_period:
            inv_freq, mscale = self._windowed_rope if self.windows[il] else self._rope
            q, k = (
                rec(
                    Rope(
                        x=y, head_dim=self.head_dim, inv_freq=inv_freq, mscale=mscale, interleaved=self.rope_interleaved
                    )
                )
                for y in (q, k)
            )
        return rec(
            Attention(
                q=q,
                k=k,
                v=v,
                n_heads=self.n_heads[il],
                n_kv_heads=self.n_kv_heads[il],
                head_dim=self.head_dim,
                v_head_dim=self.v_head_dim,
                scale=self.attention_scale(),
                window=self.windows[il],
                softcap=self._softcap("attn_logit_softcapping", self.attn_softcap),
                sinks=Weight(f"{blk}attn_sinks.weight") if self.sinks else None,
            )
        )

    def qkv(self, il: int, x: Value) -> tuple[Value, Value, Value]:
        """Queries, keys, values of [tokens, n_embd]; from one matrix where the file fuses them."""
        blk, rec = f"blk.{il}.", self.rec
        q, k, v = (
            self.n_heads[il] * self.head_dim,
            self.n_kv_heads[il] * self.head_dim,
            self.n_kv_heads[il] * self.v_head_dim,
        )
        if rec.has(f"{blk}attn_qkv.weight"):
            fused = self.linear(x, f"{blk}attn_qkv", q + k + v)
            return (
                rec(Slice(x=fused, start=0, width=q)),
                rec(Slice(x=fused, start=q, width=k)),
                rec(Slice(x=fused, start=q + k, width=v)),
            )
        return (
            self.linear(x, f"{blk}attn_q", q),
            self.linear(x, f"{blk}attn_k", k),
            self.linear(x, f"{blk}attn_v", v),
        )

    def feed_forward(self, il: int, x: Value) -> Value:
        """[tokens, n_embd] → [tokens, n_embd]: gated, or a mixture of experts."""
        if self.n_experts:
            return self.experts(il, x)
        rec, blk, n_ff = self.rec, f"blk.{il}.", self.n_ff[il]
        if not rec.has(f"{blk}ffn_gate.weight") and rec.shape(f"{blk}ffn_up.weight")[:1] == (2 * n_ff,):
            fused = self.ffn_linear(x, f"{blk}ffn_up", 2 * n_ff)
            gate, up = rec(Slice(x=fused, start=0, width=n_ff)), rec(Slice(x=fused, start=n_ff, width=n_ff))
        else:
            gate, up = self.ffn_linear(x, f"{blk}ffn_gate", n_ff), self.ffn_linear(x, f"{blk}ffn_up", n_ff)
        return self.ffn_linear(rec(GatedActivation(gate=gate, up=up, act=self.act)), f"{blk}ffn_down", self.n_embd)

    def experts(self, il: int, x: Value) -> Value:
        """[tokens, n_embd] → [tokens, n_embd], the mixture of experts."""
        blk = f"blk.{il}."
        scaled = self.ffn_scaled
        return self.rec(
            MixtureOfExperts(
                x=x,
                router=self.linear(x, f"{blk}ffn_gate_inp", self.n_experts),
                gate=Weight(f"{blk}ffn_gate_exps.weight"),
                up=Weight(f"{blk}ffn_up_exps.weight"),
                down=Weight(f"{blk}ffn_down_exps.weight"),
                gate_bias=self._optional(f"{blk}ffn_gate_exps.bias"),
                up_bias=self._optional(f"{blk}ffn_up_exps.bias"),
                down_bias=self._optional(f"{blk}ffn_down_exps.bias"),
                gate_scale=self._optional(f"{blk}ffn_gate_exps.scale") if scaled else None,
                up_scale=self._optional(f"{blk}ffn_up_exps.scale") if scaled else None,
                down_scale=self._optional(f"{blk}ffn_down_exps.scale") if scaled else None,
                n_used=self.n_experts_used,
                n_ff=self.n_ff_expert,
                gating=self.expert_gating,
                normalize=self.expert_normalize,
                weight_scale=self.hp.number("expert_weights_scale", 1.0),
                act=self.act,
            )
        )

    def output(self, hidden: Value) -> Value:
        """Logits [rows, n_vocab] of the final normed state."""
        rec = self.rec
        n_vocab = rec.shape("token_embd.weight")[0]
        tied = not rec.has("output.weight") if self.tied_output is None else self.tied_output
        if tied:
            logits = rec(Linear(x=hidden, weight=Weight("token_embd.weight")))
        else:
            logits = self.linear(hidden, "output", n_vocab)
        cap = self._softcap("final_logit_softcapping", self.logit_softcap)
        return rec(SoftCap(x=logits, cap=cap)) if cap else logits

    # --- parts

    def linear(self, x: Value, stem: str, width: int) -> Value:
        """x @ `stem`.weight.T, times `stem`.scale, plus `stem`.bias, where the file has them → [tokens, width]."""
        self.rec.require_rows(f"{stem}.weight", width)
        if scale := self._optional(f"{stem}.scale"):
            x = self.rec(Scale(x=x, factor=self._scalar(scale)))
        return self.rec(Linear(x=x, weight=Weight(f"{stem}.weight"), bias=self._optional(f"{stem}.bias")))

    def ffn_linear(self, x: Value, stem: str, width: int) -> Value:
        """The same of feed-forward matrices, whose scale holds for the bias too, as in llama.cpp."""
        self.rec.require_rows(f"{stem}.weight", width)
        y = self.rec(Linear(x=x, weight=Weight(f"{stem}.weight"), bias=self._optional(f"{stem}.bias")))
        scale = self._optional(f"{stem}.scale") if self.ffn_scaled else None
        return self.rec(Scale(x=y, factor=self._scalar(scale))) if scale else y

    def norm(self, x: Value, stem: str, group: int = 0) -> Value:
        """RMS norm with `stem`.weight, over groups of columns or the whole width."""
        return self.rec(RMSNorm(x=x, weight=Weight(f"{stem}.weight"), eps=self.eps, group=group))

    def attention_scale(self) -> float:
        """What scores are multiplied by."""
        return self.hp.number("attention.scale", 1 / math.sqrt(self.head_dim))

    def _norm(self, blk: str, name: str | None, x: Value) -> Value:
        return x if name is None else self.norm(x, f"{blk}{name}")

    def _optional(self, name: str) -> Weight | None:
        return Weight(name) if self.rec.has(name) else None

    def _softcap(self, key: str, default: float | None) -> float:
        return 0.0 if default is None else self.hp.number(key, default)

    @cached_property
    def _scaling(self) -> Scaling:
        return Scaling.read(self.hp, self.n_ctx_train)

    @cached_property
    def _rope(self) -> tuple[tuple[float, ...], float]:
        """Frequencies and multiplier of layers that see everything."""
        return self._scaling.apply(self._rope_base(), self.n_rot, self._rope_factors())

    @cached_property
    def _windowed_rope(self) -> tuple[tuple[float, ...], float]:
        """The same of layers with a window."""
        scaling = self._scaling if self.window_rope_scaled else Scaling.none()
        base = self.window_rope_base or self._rope_base()
        if self.window_rope_own:
            base = self.hp.number("rope.freq_base_swa", base)
        return scaling.apply(base, self.n_rot, self._rope_factors())

    def _rope_base(self) -> float:
        return self.hp.number("rope.freq_base", 10000.0)

    def _rope_factors(self) -> NDArray[np.float32] | None:
        """What divides the frequencies [n_rot / 2]: llama 3's, or longrope's for the context that is wanted."""
        name = "rope_freqs.weight"
        if not self.rec.has(name):
            long = self.n_ctx > self._scaling.n_ctx_orig
            name = f"rope_factors_{'long' if long else 'short'}.weight"
            if not self.rec.has(name):
                return None
        self.rec.require(name, (self.n_rot // 2,))
        return self._read(name)

    def _scalar(self, name: str) -> float:
        self.rec.require(name, (1,))
        value = float(self._read(name)[0])
        if not math.isfinite(value):
            raise ModelError(f"tensor {name} holds {value}")
        return value

    def _read(self, name: str) -> NDArray[np.float32]:
        """A small tensor that the program needs as numbers."""
        tensor = self.tensors[name]
        return formats.get(tensor.format).decode(tensor.data)
