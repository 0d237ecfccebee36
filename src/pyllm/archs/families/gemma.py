"""Gemma 1 to 3: scaled embeddings; since 2 norms on both sides of a block's parts, and windows on most layers."""

from __future__ import annotations

import math

from pyllm.archs.decoder import Decoder, Head, transformer
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.attention import Attention
from pyllm.archs.mixers.feed_forward import feed_forward
from pyllm.archs.rope import Rope

_POSTS = ("post_attention_norm", "post_ffw_norm")


def gemma(hp: HParams) -> Decoder:
    return transformer(
        hp,
        lambda il: Attention.read(hp, il),
        lambda il: feed_forward(hp, il, act="gelu"),
        embed_scale=math.sqrt(hp.n_embd),
        head=Head(tied=True),
    )


def gemma2(hp: HParams) -> Decoder:
    """A window on every other layer; soft caps on scores and logits."""
    windows = hp.windows(2, 4096)
    ropes = Rope.read(hp), Rope.read(hp, base=hp.window_rope_base, windowed=True)
    scale, cap = _attention_scale(hp, wide_head_layers=46), hp.number("attn_logit_softcapping", 50.0)
    return transformer(
        hp,
        lambda il: Attention.read(hp, il, window=windows[il], ropes=ropes, scale=scale, softcap=cap),
        lambda il: feed_forward(hp, il, act="gelu"),
        posts=_POSTS,
        embed_scale=math.sqrt(hp.n_embd),
        head=Head(tied=True, softcap=hp.number("final_logit_softcapping", 30.0)),
    )


def gemma3(hp: HParams) -> Decoder:
    """A window on five of six layers, which have their own rotary base; norms of queries and keys, no caps."""
    return _gemma3(hp, "causal", Head(softcap=hp.number("final_logit_softcapping", 0.0)))


def gemma_embedding(hp: HParams) -> Decoder:
    """Gemma 3 whose tokens see later ones, for embeddings."""
    return _gemma3(hp, "whole", None)


def _gemma3(hp: HParams, reach: str, head: Head | None) -> Decoder:
    windows = hp.windows(6, 4096)
    base = hp.number("rope.freq_base_swa", 10000.0)
    ropes = Rope.read(hp), Rope.read(hp, base=base, scaled=False, windowed=True)
    scale = _attention_scale(hp, wide_head_layers=62)
    return transformer(
        hp,
        lambda il: Attention.read(hp, il, window=windows[il], ropes=ropes, scale=scale, qk_norm="head", reach=reach),
        lambda il: feed_forward(hp, il, act="gelu"),
        posts=_POSTS,
        embed_scale=math.sqrt(hp.n_embd),
        head=head,
    )


def _attention_scale(hp: HParams, wide_head_layers: int) -> float:
    """Scores are scaled by head_dim, except in the model of 27 billion parameters, known by its layers: by n_embd /
    n_heads."""
    wide = hp.n_layers == wide_head_layers
    return hp.number("attention.scale", 1 / math.sqrt(hp.n_embd / hp.n_heads[0] if wide else hp.head_dims()[0]))


ARCHITECTURES = {"gemma": gemma, "gemma2": gemma2, "gemma3": gemma3, "gemma-embedding": gemma_embedding}
