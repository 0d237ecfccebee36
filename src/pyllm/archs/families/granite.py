"""Granite 3 and 4, dense and mixtures of experts, and MiniCPM: embeddings, parts and logits are scaled."""

from __future__ import annotations

import math
from collections.abc import Callable

from pyllm.archs.decoder import Decoder, Head, Mixer, transformer
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.attention import Attention
from pyllm.archs.mixers.feed_forward import feed_forward
from pyllm.archs.mixers.latent import LatentAttention
from pyllm.archs.mixers.mamba import Mamba2
from pyllm.archs.rope import Rope


def _scaled(
    hp: HParams, attention: Callable[[int], Mixer], *, embed: float = 1.0, part: float = 1.0, logits: float = 1.0
) -> Decoder:
    """Logits are divided by their scale. The given factors apply where the file has none."""
    return transformer(
        hp,
        attention,
        lambda il: feed_forward(hp, il),
        scale=hp.number("residual_scale", part),
        embed_scale=hp.number("embedding_scale", embed),
        head=Head(scale=1 / hp.number("logit_scale", logits)),
    )


def granite(hp: HParams) -> Decoder:
    rope = _rope(hp)
    return _scaled(hp, lambda il: Attention.read(hp, il, rope=rope))


def granitehybrid(hp: HParams) -> Decoder:
    """Granite 4: Mamba 2 in layers without KV heads."""
    rope, kv_heads = _rope(hp), hp.n_kv_heads
    return _scaled(hp, lambda il: Attention.read(hp, il, rope=rope) if kv_heads[il] else Mamba2.read(hp))


def _rope(hp: HParams) -> Rope | None:
    """Some models have no positions."""
    return Rope.read(hp, interleaved=True) if hp.flag("rope.scaling.finetuned", True) else None


def granitemoe(hp: HParams) -> Decoder:
    return _scaled(hp, lambda il: Attention.read(hp, il, interleaved=True))


def granite_swa(hp: HParams) -> Decoder:
    """Windows, sinks, and layers without positions, by patterns of the file."""
    windows, rotated = hp.windows(1), hp.flags("attention.rope_pattern", True)
    rope = Rope.read(hp, interleaved=True)

    def attention(il: int) -> Attention:
        return Attention.read(hp, il, window=windows[il], rope=rope if rotated[il] else None, sinks=True)

    return _scaled(hp, attention)


def minicpm(hp: HParams) -> Decoder:
    return _minicpm(hp, lambda il: Attention.read(hp, il, interleaved=True))


def minicpm3(hp: HParams) -> Decoder:
    """Latent attention."""
    rope = Rope.read(hp)
    return _minicpm(hp, lambda il: LatentAttention.read(hp, il, rope))


def _minicpm(hp: HParams, attention: Callable[[int], Mixer]) -> Decoder:
    """Its first files, and all of MiniCPM 3, lack the scales that the model was trained with; these are they."""
    return _scaled(hp, attention, embed=12.0, part=1.4 / math.sqrt(hp.n_layers), logits=hp.n_embd / 256)


ARCHITECTURES = {
    "granite": granite,
    "granitehybrid": granitehybrid,
    "granitemoe": granitemoe,
    "granite_swa": granite_swa,
    "minicpm": minicpm,
    "minicpm3": minicpm3,
}
