"""DeepSeek 1 and models of its layout: the first layers are dense, the others have experts and shared experts."""

from __future__ import annotations

import math

from pyllm.archs.decoder import Decoder, transformer
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.attention import Attention
from pyllm.archs.mixers.feed_forward import feed_forward, mixture
from pyllm.archs.rope import Rope


def deepseek(hp: HParams) -> Decoder:
    return transformer(
        hp,
        lambda il: Attention.read(hp, il, interleaved=True),
        lambda il: feed_forward(hp, il, normalize=False),
    )


def deepseek2_ocr(hp: HParams) -> Decoder:
    """Attention is not DeepSeek 2's; rotated pairs are halves apart."""
    rope = Rope.read(hp, base=10000.0, scaled=False, factors=False)
    gating, normalize = hp.gating("softmax"), hp.flag("expert_weights_norm", False)
    return transformer(
        hp,
        lambda il: Attention.read(hp, il, rope=rope),
        lambda il: feed_forward(hp, il, gating=gating, normalize=normalize),
    )


def bailingmoe(hp: HParams) -> Decoder:
    """Ling: experts on all layers."""
    rope, normalize = Rope.read(hp, interleaved=True), hp.flag("expert_weights_norm", False)
    return transformer(
        hp,
        lambda il: Attention.read(hp, il, rope=rope, scale=1 / math.sqrt(rope.n_rot)),
        lambda il: mixture(hp, il, normalize=normalize),
    )


def dots1(hp: HParams) -> Decoder:
    """dots.llm1: norms of each head's queries and keys."""
    gating, normalize = hp.gating("softmax"), hp.flag("expert_weights_norm", False)
    return transformer(
        hp,
        lambda il: Attention.read(hp, il, qk_norm="head"),
        lambda il: feed_forward(hp, il, gating=gating, normalize=normalize),
    )


ARCHITECTURES = {"deepseek": deepseek, "deepseek2-ocr": deepseek2_ocr, "bailingmoe": bailingmoe, "dots1": dots1}
