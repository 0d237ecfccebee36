"""Command R and its successors: parallel attention and feed-forward, scaled logits."""

from __future__ import annotations

from pyllm.archs.decoder import LN, RMS, Decoder, Head, NextTokens, Part
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.attention import Attention
from pyllm.archs.mixers.combine import Sum
from pyllm.archs.mixers.feed_forward import FFN, mixture
from pyllm.archs.rope import Rope


def command_r(hp: HParams) -> Decoder:
    """The larger models norm each head's queries and keys."""
    qk_norm = "head" if hp.has("blk.0.attn_q_norm.weight") else "none"

    def layer(il: int) -> tuple[Part, ...]:
        return (Part(Sum((Attention.read(hp, il, interleaved=True, qk_norm=qk_norm), FFN.read(hp, il))), "attn_norm"),)

    return Decoder.read(hp, layer, norm=LN.read(hp), head=Head(tied=True, scale=hp.number("logit_scale", 1.0)))


def cohere2(hp: HParams) -> Decoder:
    """Windows on three of four layers; the fourth has no positions."""
    windows, ropes = hp.windows(4), (None, Rope.read(hp, interleaved=True))

    def layer(il: int) -> tuple[Part, ...]:
        attention = Attention.read(hp, il, window=windows[il], ropes=ropes)
        return (Part(Sum((attention, FFN.read(hp, il, scaled=True))), "attn_norm"),)

    return Decoder.read(hp, layer, norm=LN.read(hp), head=Head(tied=True, scale=hp.number("logit_scale")))


def cohere2moe(hp: HParams) -> Decoder:
    """Experts after the first layers, which all have positions, as heads have; shared experts count half."""
    windows, rope = hp.windows(4, dense_first=True), Rope.read(hp, interleaved=True)
    n_dense = hp.integer("leading_dense_block_count", 0)
    gating, normalize = hp.gating("sigmoid"), hp.flag("expert_weights_norm", False)
    n_shared = None if hp.integer("expert_shared_count", 0) else 0

    def layer(il: int) -> tuple[Part, ...]:
        turned = rope if windows[il] or il < n_dense or il >= hp.n_trunk else None
        attention = Attention.read(hp, il, window=windows[il], rope=turned)
        if il < n_dense:
            return (Part(Sum((attention, FFN.read(hp, il, scaled=True))), "attn_norm"),)
        experts = mixture(hp, il, n_shared=n_shared, scale_of_sum=0.5, gating=gating, normalize=normalize, scaled=True)
        return (Part(Sum((attention, experts)), "attn_norm"),)

    has_rms = hp.number("attention.layer_norm_rms_epsilon", 0.0) > 0
    norm = RMS.read(hp) if has_rms else LN.read(hp)
    head = Head(scale=hp.number("logit_scale"))
    return Decoder.read(hp, layer, norm=norm, head=head, next_tokens=NextTokens())


ARCHITECTURES = {"command-r": command_r, "cohere2": cohere2, "cohere2moe": cohere2moe}
