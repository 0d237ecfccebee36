"""GLM-4: norms on both sides of parts; GLM-4.5 and later: experts."""

from __future__ import annotations

from pyllm.archs.decoder import Decoder, NextTokens, transformer
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.attention import Attention
from pyllm.archs.mixers.feed_forward import feed_forward


def glm4(hp: HParams) -> Decoder:
    """Rotated pairs are neighbours; in vision models halves apart."""
    return transformer(
        hp,
        lambda il: Attention.read(hp, il, interleaved=not hp.has_sections),
        lambda il: feed_forward(hp, il),
        posts=("post_attention_norm", "post_ffw_norm"),
    )


def glm4moe(hp: HParams) -> Decoder:
    """The largest models norm queries and keys."""
    qk_norm = "head" if hp.has("blk.0.attn_q_norm.weight") else "none"
    gating, normalize = hp.gating("sigmoid"), hp.flag("expert_weights_norm", False)
    return transformer(
        hp,
        lambda il: Attention.read(hp, il, qk_norm=qk_norm),
        lambda il: feed_forward(hp, il, gating=gating, normalize=normalize),
        norms=("attn_norm", "post_attention_norm"),
        next_tokens=NextTokens(),
    )


ARCHITECTURES = {"glm4": glm4, "glm4moe": glm4moe}
