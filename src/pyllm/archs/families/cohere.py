"""Command R and its successors: attention and feed-forward beside each other, logits scaled."""

from __future__ import annotations

from pyllm.archs.decoder import LN, RMS, Decoder, Head, Part
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.attention import Attention
from pyllm.archs.mixers.combine import Sum
from pyllm.archs.mixers.feed_forward import FFN, Experts
from pyllm.archs.rope import Rope


def command_r(hp: HParams) -> Decoder:
    """The larger models norm each head's queries and keys."""
    qk_norm = "head" if hp.has("blk.0.attn_q_norm.weight") else "none"

    def layer(il: int) -> tuple[Part, ...]:
        return (Part(Sum((Attention.read(hp, il, interleaved=True, qk_norm=qk_norm), FFN.read(hp, il))), "attn_norm"),)

    return Decoder.read(hp, layer, norm=LN.read(hp), head=Head(tied=True, scale=hp.number("logit_scale", 1.0)))


def cohere2(hp: HParams) -> Decoder:
    """Windows on three of four layers; the fourth goes without positions."""
    windows, rope = hp.windows(4), Rope.read(hp, interleaved=True)

    def layer(il: int) -> tuple[Part, ...]:
        attention = Attention.read(hp, il, window=windows[il], rope=rope if windows[il] else None)
        return (Part(Sum((attention, FFN.read(hp, il, scaled=True))), "attn_norm"),)

    return Decoder.read(hp, layer, norm=LN.read(hp), head=Head(tied=True, scale=hp.number("logit_scale")))


def cohere2moe(hp: HParams) -> Decoder:
    """Experts after the first layers, which all have positions; what all tokens use counts half."""
    windows, rope = hp.windows(4, dense_first=True), Rope.read(hp, interleaved=True)
    n_dense = hp.integer("leading_dense_block_count", 0)
    gating, normalize = hp.gating("sigmoid"), hp.flag("expert_weights_norm", False)
    n_shared = hp.integer("expert_shared_count", 0)

    def layer(il: int) -> tuple[Part, ...]:
        turned = rope if windows[il] or il < n_dense else None
        mixers = [Attention.read(hp, il, window=windows[il], rope=turned)]
        if il < n_dense:
            return (Part(Sum((*mixers, FFN.read(hp, il, scaled=True))), "attn_norm"),)
        experts = Experts.read(hp, il, gating=gating, normalize=normalize, scaled=True)
        if not n_shared:
            return (Part(Sum((*mixers, experts)), "attn_norm"),)
        n_ff = hp.integer("expert_shared_feed_forward_length", 0) or hp.n_ff_expert(il) * n_shared
        both = Sum((experts, FFN(n_ff=n_ff, kind="_shexp", scaled=True)), scale=0.5)
        return (Part(Sum((*mixers, both)), "attn_norm"),)

    has_rms = hp.number("attention.layer_norm_rms_epsilon", 0.0) > 0
    norm = RMS.read(hp) if has_rms else LN.read(hp)
    return Decoder.read(hp, layer, norm=norm, head=Head(scale=hp.number("logit_scale")))


ARCHITECTURES = {"command-r": command_r, "cohere2": cohere2, "cohere2moe": cohere2moe}
