"""JetBrains' Mellum 2: experts, and windows on three of four layers, whose positions are not stretched."""

from __future__ import annotations

from pyllm.archs.decoder import Decoder, transformer
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.attention import Attention
from pyllm.archs.mixers.feed_forward import mixture
from pyllm.archs.rope import Rope


def mellum(hp: HParams) -> Decoder:
    windows = hp.windows(4) if hp.integer("attention.sliding_window", 0) else [0] * hp.n_layers
    whole, local = Rope.read(hp), Rope.read(hp, scaled=False)

    def attention(il: int) -> Attention:
        return Attention.read(hp, il, window=windows[il], rope=local if windows[il] else whole, qk_norm="head")

    return transformer(hp, attention, lambda il: mixture(hp, il, scaled=True))


ARCHITECTURES = {"mellum": mellum}
