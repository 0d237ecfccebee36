"""MiniMax M2: experts with sigmoid routing; queries and keys are normed over all heads."""

from __future__ import annotations

from pyllm.archs.decoder import Decoder, transformer
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.attention import Attention
from pyllm.archs.mixers.feed_forward import mixture


def minimax_m2(hp: HParams) -> Decoder:
    gating = hp.gating("sigmoid")
    return transformer(
        hp, lambda il: Attention.read(hp, il, qk_norm="width"), lambda il: mixture(hp, il, gating=gating)
    )


ARCHITECTURES = {"minimax-m2": minimax_m2}
