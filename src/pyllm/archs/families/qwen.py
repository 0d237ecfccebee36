"""Qwen 1 to 3, dense and mixtures of experts, the language models of vision models, and diffusion models of Qwen 3's
shape: RND1, LLaDA-MoE."""

from __future__ import annotations

from functools import partial

from pyllm.archs.decoder import Decoder, Head, transformer
from pyllm.archs.families.plain import plain
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.attention import Attention
from pyllm.archs.mixers.feed_forward import FFN, feed_forward, mixture


def qwen(hp: HParams) -> Decoder:
    """The first Qwen: files state twice the columns of a feed-forward matrix."""
    return transformer(
        hp,
        lambda il: Attention.read(hp, il),
        lambda il: FFN(n_ff=hp.per_layer("feed_forward_length")[il] // 2),
    )


def qwen3(hp: HParams) -> Decoder:
    """Norms of each head's queries and keys."""
    return transformer(
        hp, lambda il: Attention.read(hp, il, qk_norm="head"), lambda il: feed_forward(hp, il, scaled=True)
    )


def qwen3moe(
    hp: HParams, *, reach: str = "causal", scaled: bool = True, normalize: bool = True, tied: bool | None = None
) -> Decoder:
    """Every block's feed-forward is a mixture of experts."""
    return transformer(
        hp,
        lambda il: Attention.read(hp, il, qk_norm="head", reach=reach),
        lambda il: mixture(hp, il, scaled=scaled, normalize=normalize),
        head=Head(tied=tied),
    )


def qwen3vl(hp: HParams) -> Decoder:
    """The language model; its inputs from images are not read."""
    return transformer(hp, lambda il: Attention.read(hp, il, qk_norm="head"), lambda il: feed_forward(hp, il))


ARCHITECTURES = {
    "llada-moe": partial(qwen3moe, reach="whole", scaled=False, normalize=False, tied=False),
    "qwen": qwen,
    "qwen2": plain,
    "qwen2vl": plain,
    "qwen3": qwen3,
    "qwen3moe": qwen3moe,
    "qwen3tts": qwen3vl,  # files whose head has only the codec's tokens are refused
    "qwen3vl": qwen3vl,
    "qwen3vlmoe": qwen3vl,
    "rnd1": partial(qwen3moe, reach="whole", scaled=False),
}
