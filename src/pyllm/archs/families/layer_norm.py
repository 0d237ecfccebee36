"""Families with layer norms: attention and feed-forward in sequence or in parallel."""

from __future__ import annotations

from functools import partial

from pyllm.archs.decoder import LN, Decoder, Head, Part, transformer
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.attention import Attention
from pyllm.archs.mixers.combine import Normed, Sum
from pyllm.archs.mixers.feed_forward import FFN


def plain(hp: HParams, *, act: str = "silu", gated: bool = False, tied: bool | None = None, window: int = 0) -> Decoder:
    return transformer(
        hp,
        lambda il: Attention.read(hp, il, window=window),
        lambda il: FFN.read(hp, il, act=act, gated=gated),
        norm=LN.read(hp),
        head=Head(tied=tied),
    )


def parallel(hp: HParams, *, attn_norm: str = "attn_norm", ffn_norm: str = "attn_norm") -> Decoder:
    """Parallel attention and ungated feed-forward, with one norm for both or one for each."""

    def layer(il: int) -> tuple[Part, ...]:
        attention, feed_forward = Attention.read(hp, il), FFN.read(hp, il, act="gelu", gated=False)
        if attn_norm == ffn_norm:
            return (Part(Sum((attention, feed_forward)), attn_norm),)
        return (Part(Sum((Normed(attention, attn_norm), Normed(feed_forward, ffn_norm)))),)

    return Decoder.read(hp, layer, norm=LN.read(hp))


def falcon(hp: HParams) -> Decoder:
    """The larger models have a second norm, for attention."""
    return parallel(hp, attn_norm="attn_norm_2" if hp.has("blk.0.attn_norm_2.weight") else "attn_norm")


def starcoder2(hp: HParams) -> Decoder:
    """Windows on all layers, as in transformers; llama.cpp's converter omits them."""
    window = hp.integer("attention.sliding_window", 0, most=1 << 31)
    return plain(hp, act="gelu", window=window)


def gptneox(hp: HParams) -> Decoder:
    return parallel(hp, ffn_norm="ffn_norm") if hp.flag("use_parallel_residual", True) else plain(hp, act="gelu")


def stablelm(hp: HParams) -> Decoder:
    """The model of 12 billion parameters has one norm for both parts, and norms of each head's queries and keys."""
    qk_norm = "head" if hp.has("blk.0.attn_q_norm.weight") else "none"

    def layer(il: int) -> tuple[Part, ...]:
        mixers = Attention.read(hp, il, qk_norm=qk_norm), FFN.read(hp, il)
        if hp.has(f"blk.{il}.ffn_norm.weight"):
            return Part(mixers[0], "attn_norm"), Part(mixers[1], "ffn_norm")
        return (Part(Sum(mixers), "attn_norm"),)

    return Decoder.read(hp, layer, norm=LN.read(hp))


ARCHITECTURES = {
    "codeshell": partial(plain, act="gelu"),
    "falcon": falcon,
    "gptneox": gptneox,
    "jais2": partial(plain, act="relu2"),
    "nemotron": partial(plain, act="relu2"),
    "orion": partial(plain, gated=True),
    "phi2": parallel,
    "stablelm": stablelm,
    "starcoder2": starcoder2,
}
