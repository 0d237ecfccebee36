"""OLMo 2 and 3: norms after each part of a block, none before; OLMoE: experts. Queries and keys are normed over all
heads."""

from __future__ import annotations

from pyllm.archs.decoder import Decoder, transformer
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.attention import Attention
from pyllm.archs.mixers.feed_forward import FFN, mixture
from pyllm.archs.rope import Rope


def olmo2(hp: HParams) -> Decoder:
    """OLMo 3 adds windows on three of four layers, with unscaled positions."""
    windows = hp.windows(4)
    ropes = Rope.read(hp), Rope.read(hp, scaled=False, windowed=True)
    return transformer(
        hp,
        lambda il: Attention.read(hp, il, window=windows[il], ropes=ropes, qk_norm="width"),
        lambda il: FFN.read(hp, il),
        norms=(None, None),
        posts=("post_attention_norm", "post_ffw_norm"),
    )


def olmoe(hp: HParams) -> Decoder:
    return transformer(
        hp, lambda il: Attention.read(hp, il, qk_norm="width"), lambda il: mixture(hp, il, normalize=False)
    )


ARCHITECTURES = {"olmo2": olmo2, "olmoe": olmoe}
