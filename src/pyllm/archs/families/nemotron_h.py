"""Nemotron-H and Nemotron 3: layers of one part each, Mamba 2, attention or a feed-forward network."""

from __future__ import annotations

from typing import Any

from pyllm.archs.decoder import LN, RMS, Decoder, Mixer, NextTokens, Part
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.attention import Attention
from pyllm.archs.mixers.feed_forward import FFN, mixture
from pyllm.archs.mixers.mamba import Mamba2


def nemotron_h(hp: HParams) -> Decoder:
    """The numbers of KV heads and feed-forward columns tell a layer's kind; attention has no positions. A head has both
    in one layer, and the other kind of norm before its logits."""
    kv_heads, n_ff = hp.n_kv_heads, hp.per_layer("feed_forward_length")
    key = "attention.layer_norm_rms_epsilon"
    norm = RMS.read(hp, key if hp.number(key, 0.0) else "attention.layer_norm_epsilon")

    def mixer(il: int) -> Mixer:
        if not n_ff[il]:
            return Attention.read(hp, il, rope=None) if kv_heads[il] else Mamba2.read(hp)
        return feed_forward(il)

    def feed_forward(il: int) -> Mixer:
        return _experts(hp, il, n_ff[il]) if hp.n_experts else FFN.read(hp, il, act="relu2", gated=False, scaled=True)

    def layer(il: int) -> tuple[Part, ...]:
        if il < hp.n_trunk:
            return (Part(mixer(il), "attn_norm"),)
        attention = Attention.read(hp, il, rope=None)
        return Part(attention, "attn_norm"), Part(feed_forward(il), "post_attention_norm")

    return Decoder.read(hp, layer, norm=norm, next_tokens=NextTokens(norm=LN(norm.eps)))


def _experts(hp: HParams, il: int, n_ff: int) -> Mixer:
    """Experts without gates, and one for all tokens; older files give the columns of all experts that a token uses."""
    n_expert = hp.per_layer("expert_feed_forward_length", 0)[il] or n_ff // hp.n_experts_used(il)
    n_shared, normalize = hp.integer("expert_shared_feed_forward_length"), hp.flag("expert_weights_norm", False)
    kind: dict[str, Any] = {"act": "relu2", "gated": False, "gating": "sigmoid"}
    return mixture(hp, il, n_ff=n_expert, n_shared=n_shared, normalize=normalize, scaled=True, **kind)


ARCHITECTURES = {"nemotron_h": nemotron_h, "nemotron_h_moe": nemotron_h}
