"""OpenELM: heads and feed-forward columns differ from layer to layer."""

from __future__ import annotations

from pyllm.archs.decoder import Decoder, Head, transformer
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.attention import Attention
from pyllm.archs.mixers.feed_forward import FFN


def openelm(hp: HParams) -> Decoder:
    return transformer(
        hp,
        lambda il: Attention.read(hp, il, qk_norm="head", scaled=False),
        lambda il: FFN.read(hp, il),
        head=Head(tied=True),
    )


ARCHITECTURES = {"openelm": openelm}
