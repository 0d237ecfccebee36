"""Encoders: BERT and its relatives. Tokens see later ones; there is no head, so they give states, for embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyllm.archs.decoder import LN, RMS, Decoder, Mixer, Part, transformer
from pyllm.archs.graph import Graph
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.attention import Attention
from pyllm.archs.mixers.feed_forward import FFN, Experts
from pyllm.archs.rope import Rope
from pyllm.errors import ModelError
from pyllm.program import Value
from pyllm.records import dataclass

_GATES = {"gelu": "gelu", "geglu": "gelu", "silu": "silu", "swish": "silu", "swiglu": "silu", "reglu": "relu"}
"""Activations of ModernBERT's gated networks, by their names in files."""


@dataclass(frozen=True, slots=True)
class LayerInput:
    """The layer's input, whatever the part's input."""

    def __call__(self, g: Graph, blk: str, x: Value) -> Value:
        return g.layer_input


def post_normed(
    hp: HParams, feed_forward: Callable[[int], Mixer], *, second_norm: str | None = None, **attention: Any
) -> Decoder:
    """BERT's layers: the stream is normed after each part. Types of tokens count as the first, as in llama.cpp.

    `second_norm`: after attention, of the stream plus the layer's input, in layers that have it; `attention`: options.
    """

    def layer(il: int) -> tuple[Part, ...]:
        parts = [Part(Attention.read(hp, il, reach="whole", **attention), after="attn_output_norm")]
        if second_norm and hp.has(f"blk.{il}.{second_norm}.weight"):
            parts.append(Part(LayerInput(), after=second_norm))
        return (*parts, Part(feed_forward(il), after="layer_output_norm"))

    return Decoder.read(
        hp, layer, norm=LN.read(hp), embed_norm="token_embd_norm", types=True, final_norm=None, head=None,
        positions=hp.has("position_embd.weight"),
    )  # fmt: skip


def bert(hp: HParams) -> Decoder:
    return post_normed(hp, lambda il: FFN.read(hp, il, act="gelu", gated=False), rope=None)


def nomic_bert(hp: HParams) -> Decoder:
    """Rotated positions, gated networks without biases."""
    return post_normed(hp, lambda il: FFN.read(hp, il, biases=False))


def nomic_bert_moe(hp: HParams) -> Decoder:
    """Experts on the second of every so many layers."""
    period = hp.integer("moe_every_n_layers", 0)

    def feed_forward(il: int) -> Mixer:
        if period and il % period == 1:
            return Experts.read(hp, il, act="gelu", gated=False, normalize=False)
        return FFN.read(hp, il, act="gelu", gated=False)

    return post_normed(hp, feed_forward)


def jina_bert_v2(hp: HParams) -> Decoder:
    """ALiBi; norms of queries and keys, and a second norm after attention, in some models."""

    def feed_forward(il: int) -> Mixer:
        ffn = FFN.read(hp, il, act="gelu")
        up = hp.tensors.get(f"blk.{il}.ffn_up.weight")
        gated = hp.has(f"blk.{il}.ffn_gate.weight") or (up is not None and up.shape[0] == 2 * ffn.n_ff)
        return FFN.read(hp, il, act="gelu", gated=gated)

    normed = hp.has("blk.0.attn_q_norm.weight")
    return post_normed(
        hp, feed_forward, second_norm="attn_norm_2", rope=None, alibi=8.0, qk_norm="width" if normed else "none"
    )


def jina_bert_v3(hp: HParams) -> Decoder:
    return post_normed(hp, lambda il: FFN.read(hp, il, act="gelu", gated=False))


def modern_bert(hp: HParams) -> Decoder:
    """Norms before parts, but for the first; windows on two of three layers, which have their own rotary base."""
    windows = hp.windows(3, dense_first=True)
    ropes = Rope.read(hp), Rope.read(hp, base=hp.window_rope_base, windowed=True)
    name = hp.text("hidden_activation", "gelu")
    if name not in _GATES:
        raise ModelError(f"{hp.arch}.hidden_activation is {name!r}, which is unknown; known are {', '.join(_GATES)}")

    def layer(il: int) -> tuple[Part, ...]:
        attention = Attention.read(hp, il, window=windows[il], ropes=ropes, reach="whole", out_bias=False)
        norm = "attn_norm" if il or hp.has("blk.0.attn_norm.weight") else None
        return Part(attention, norm), Part(FFN.read(hp, il, act=_GATES[name], biases=False), "ffn_norm")

    return Decoder.read(hp, layer, norm=LN.read(hp), embed_norm="token_embd_norm", head=None)


def eurobert(hp: HParams) -> Decoder:
    return _pre_normed(hp)


def neo_bert(hp: HParams) -> Decoder:
    return _pre_normed(hp, interleaved=True, final_norm="enc.output_norm")


def _pre_normed(hp: HParams, *, final_norm: str = "output_norm", interleaved: bool = False) -> Decoder:
    """Llama's layers, without biases of the output projection."""
    return transformer(
        hp,
        lambda il: Attention.read(hp, il, reach="whole", interleaved=interleaved, out_bias=False),
        lambda il: FFN.read(hp, il, biases=False),
        norm=RMS.read(hp),
        final_norm=final_norm,
        head=None,
    )


ARCHITECTURES = {
    "bert": bert,
    "eurobert": eurobert,
    "jina-bert-v2": jina_bert_v2,
    "jina-bert-v3": jina_bert_v3,
    "modern-bert": modern_bert,
    "neo-bert": neo_bert,
    "nomic-bert": nomic_bert,
    "nomic-bert-moe": nomic_bert_moe,
}
