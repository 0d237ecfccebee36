"""Grok 1 and 2: capped scores, norms on both sides of parts, scales of embeddings and logits."""

from __future__ import annotations

import math

from pyllm.archs.decoder import Decoder, Head, Mixer, transformer
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.attention import Attention
from pyllm.archs.mixers.combine import Sum
from pyllm.archs.mixers.feed_forward import FFN, Experts


def grok(hp: HParams) -> Decoder:
    """Grok 2 has a feed-forward network beside the experts. Default factors are Grok 1's."""
    scale, cap = hp.number("attention.output_scale", 128**-0.5), hp.number("attn_logit_softcapping", 30.0)

    def ffn(il: int) -> Mixer:
        experts = Experts.read(hp, il, act="gelu")
        dense = hp.has(f"blk.{il}.ffn_up.weight")
        return Sum((FFN.read(hp, il, act="gelu"), experts), scale=math.sqrt(0.5)) if dense else experts

    last = "layer_output_norm" if hp.has("blk.0.layer_output_norm.weight") else "post_ffw_norm"
    return transformer(
        hp,
        lambda il: Attention.read(hp, il, scale=scale, softcap=cap),
        ffn,
        posts=("attn_output_norm", last),
        embed_scale=hp.number("embedding_scale", 78.38367176906169),
        head=Head(
            scale=hp.number("logit_scale", 0.5773502691896257), softcap=hp.number("final_logit_softcapping", 0.0)
        ),
    )


ARCHITECTURES = {"grok": grok}
