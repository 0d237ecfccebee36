"""Families with gated attention or a gated shared expert."""

from __future__ import annotations

import math

from pyllm.archs.decoder import RMS, Decoder, Head, Part, transformer
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.attention import Attention
from pyllm.archs.mixers.combine import Gated, Normed, Sum
from pyllm.archs.mixers.feed_forward import FFN, Experts, feed_forward
from pyllm.archs.rope import Rope
from pyllm.errors import ModelError

_POSTS = ("post_attention_norm", "post_ffw_norm")


def qwen2moe(hp: HParams) -> Decoder:
    """Qwen 1.5 and 2 with experts."""
    return transformer(hp, lambda il: Attention.read(hp, il), lambda il: gated_shared(hp, il, normalize=False))


def gated_shared(hp: HParams, il: int, *, scaled: bool = False, normalize: bool = True) -> Sum:
    """Layer `il`'s experts, and a shared one that is gated by a number for each token."""
    n_ff = hp.per_layer("feed_forward_length", 0)[il]
    n_shared = hp.integer("expert_shared_feed_forward_length", 0) or n_ff
    n_expert = hp.per_layer("expert_feed_forward_length", 0)[il] or n_ff // hp.n_experts_used(il)
    if not (n_shared and n_expert):
        raise ModelError(f"{hp.arch}.expert_feed_forward_length and expert_shared_feed_forward_length are missing")
    shared = Gated(FFN(n_ff=n_shared, kind="_shexp", scaled=scaled), "ffn_gate_inp_shexp")
    return Sum((Experts.read(hp, il, normalize=normalize, n_ff=n_expert, scaled=scaled), shared))


def afmoe(hp: HParams) -> Decoder:
    """Arcee's Trinity: windows on three of four layers, no positions on the fourth."""
    windows = hp.windows(4)
    ropes = Rope.read(hp, factors=False), Rope.read(hp, base=hp.window_rope_base, factors=False)
    gating, normalize = hp.gating("sigmoid"), hp.flag("expert_weights_norm", False)

    def attention(il: int) -> Attention:
        rope = ropes[windows[il] > 0] if (il + 1) % 4 else None
        return Attention.read(hp, il, window=windows[il], rope=rope, qk_norm="head", gate="sigmoid")

    return transformer(
        hp,
        attention,
        lambda il: feed_forward(hp, il, gating=gating, normalize=normalize),
        posts=_POSTS,
        embed_scale=math.sqrt(hp.n_embd),
    )


def muse_glimmer(hp: HParams) -> Decoder:
    """Norms after the parts have their own epsilon; embeddings are normed."""
    windows = hp.windows(4)
    ropes = None, Rope.read(hp, base=hp.window_rope_base, interleaved=True, factors=False)
    after = RMS(1e-8)

    def layer(il: int) -> tuple[Part, ...]:
        attention = Attention.read(hp, il, window=windows[il], ropes=ropes, qk_norm="head", gate="sigmoid")
        return (
            Part(Normed(attention, post=_POSTS[0], kind=after), "attn_norm"),
            Part(Normed(FFN.read(hp, il), post=_POSTS[1], kind=after), "ffn_norm"),
        )

    head = Head(tied=False, scale=hp.number("logit_scale"), softcap=hp.number("final_logit_softcapping", 0.0))
    return Decoder.read(hp, layer, embed_norm="", head=head)


def spark2_5(hp: HParams) -> Decoder:
    """A gate for each head; windows by the file's pattern, with their own rotary base."""
    windows = hp.windows(1)
    ropes = Rope.read(hp, factors=False), Rope.read(hp, base=hp.window_rope_base, windowed=True, factors=False)

    return transformer(
        hp,
        lambda il: Attention.read(hp, il, window=windows[il], ropes=ropes, gate="sigmoid"),
        lambda il: FFN.read(hp, il, act="gelu"),
    )


def laguna(hp: HParams) -> Decoder:
    """A gate for each head, or each column; windowed layers have other numbers of heads, and unscaled positions."""
    windows = hp.windows(4, dense_first=True)
    local = Rope.read(hp, base=hp.window_rope_base, scaled=False, windowed=True, factors=False)
    ropes = Rope.read(hp, factors=False), local
    gating, normalize = hp.gating("sigmoid"), hp.flag("expert_weights_norm", False)

    def shared(il: int) -> int:
        n = hp.integer("expert_shared_feed_forward_length", 0)
        return n or hp.n_ff_expert(il) * hp.integer("expert_shared_count", 1)

    return transformer(
        hp,
        lambda il: Attention.read(hp, il, window=windows[il], ropes=ropes, qk_norm="head", gate="softplus"),
        lambda il: feed_forward(hp, il, gating=gating, normalize=normalize, n_shared=shared(il)),
    )


ARCHITECTURES = {
    "qwen2moe": qwen2moe,
    "afmoe": afmoe,
    "muse-glimmer": muse_glimmer,
    "spark2_5": spark2_5,
    "laguna": laguna,
}
