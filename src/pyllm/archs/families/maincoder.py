"""Maincoder: queries and keys are normed after their rotation."""

from __future__ import annotations

from pyllm.archs.decoder import Decoder, transformer
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.attention import Attention
from pyllm.archs.mixers.feed_forward import FFN


def maincoder(hp: HParams) -> Decoder:
    return transformer(
        hp,
        lambda il: Attention.read(hp, il, interleaved=True, qk_norm="head", rope_first=True),
        lambda il: FFN.read(hp, il),
    )


ARCHITECTURES = {"maincoder": maincoder}
