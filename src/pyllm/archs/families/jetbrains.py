"""JetBrains' Mellum 2: experts, and windows on three of four layers, with unscaled positions."""

from __future__ import annotations

from pyllm.archs.decoder import Decoder, transformer
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.attention import Attention
from pyllm.archs.mixers.feed_forward import mixture
from pyllm.archs.rope import Rope


def mellum(hp: HParams) -> Decoder:
    windows = hp.windows(4) if hp.integer("attention.sliding_window", 0) else [0] * hp.n_layers
    ropes = Rope.read(hp), Rope.read(hp, scaled=False)
    return transformer(
        hp,
        lambda il: Attention.read(hp, il, window=windows[il], ropes=ropes, qk_norm="head"),
        lambda il: mixture(hp, il, scaled=True),
    )


ARCHITECTURES = {"mellum": mellum}
