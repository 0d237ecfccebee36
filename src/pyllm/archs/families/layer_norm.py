"""Families with layer norms: attention and feed-forward in sequence or in parallel; positions rotated, learned, or by
ALiBi."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from pyllm.archs.decoder import LN, Decoder, Head, Part, transformer
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.attention import Attention
from pyllm.archs.mixers.combine import Normed, Sum
from pyllm.archs.mixers.feed_forward import FFN, mixture


def plain(
    hp: HParams,
    *,
    act: str = "silu",
    gated: bool = False,
    tied: bool | None = None,
    attention: Mapping[str, Any] | None = None,
    **options: Any,
) -> Decoder:
    """`attention`: options of its mixer; `options`: of the transformer."""
    return transformer(
        hp,
        lambda il: Attention.read(hp, il, **(attention or {})),
        lambda il: FFN.read(hp, il, act=act, gated=gated),
        norm=LN.read(hp),
        head=Head(tied=tied),
        **options,
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
    return plain(hp, act="gelu", attention={"window": window})


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


def learned(hp: HParams) -> Decoder:
    """A learned row for each position, added to the embeddings; none of attention's own."""
    return plain(hp, act="gelu", attention={"rope": None}, positions=True)


def bloom(hp: HParams) -> Decoder:
    return plain(hp, act="gelu", attention={"rope": None, "alibi": 8.0}, embed_norm="token_embd_norm")


def jais(hp: HParams) -> Decoder:
    """Scores are divided by head_dim, not by its root."""
    scale = 1 / hp.head_dims()[0]
    attention = {"rope": None, "alibi": hp.number("attention.max_alibi_bias", 0.0), "scale": scale}
    return plain(hp, gated=True, tied=False, attention=attention)


def mpt(hp: HParams) -> Decoder:
    """ALiBi, learned positions or both, as the file has them; queries and keys may be normed over all heads."""
    qk_norm = "width" if hp.has("blk.0.attn_q_norm.weight") else "none"
    attention = {"rope": None, "alibi": hp.number("attention.max_alibi_bias", 0.0), "qk_norm": qk_norm}
    positions = hp.has("position_embd.weight")
    return plain(hp, act="gelu", attention=attention | _clamp(hp), positions=positions)


def olmo(hp: HParams) -> Decoder:
    """Norms without weights."""
    attention = {"interleaved": True, "out_bias": False} | _clamp(hp)
    return plain(hp, gated=True, attention=attention, norms=("", ""), final_norm="")


def dbrx(hp: HParams) -> Decoder:
    return transformer(
        hp,
        lambda il: Attention.read(hp, il, out_bias=False, **_clamp(hp)),
        lambda il: mixture(hp, il),
        norms=("attn_norm", "attn_output_norm"),
        norm=LN.read(hp),
        head=Head(tied=False),
    )


def pockettts(hp: HParams) -> Decoder:
    """The backbone of Pocket TTS: its states are what is used, logits are not."""
    return plain(hp, act="gelu", tied=True, attention={"interleaved": True})


def _clamp(hp: HParams) -> dict[str, Any]:
    return {"clamp": hp.number("attention.clamp_kqv", 0.0)}


ARCHITECTURES = {
    "bloom": bloom,
    "codeshell": partial(plain, act="gelu"),
    "dbrx": dbrx,
    "falcon": falcon,
    "gpt2": learned,
    "gptneox": gptneox,
    "jais": jais,
    "jais2": partial(plain, act="relu2"),
    "mpt": mpt,
    "nemotron": partial(plain, act="relu2"),
    "olmo": olmo,
    "orion": partial(plain, gated=True),
    "phi2": parallel,
    "pockettts": pockettts,
    "stablelm": stablelm,
    "starcoder": learned,
    "starcoder2": starcoder2,
}
