"""BitNet b1.58: ternary matrices with a scale each, and norms before the last product of each part."""

from __future__ import annotations

from pyllm.archs.decoder import Decoder, Head, transformer
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.attention import Attention
from pyllm.archs.mixers.feed_forward import FFN


def bitnet(hp: HParams) -> Decoder:
    return transformer(
        hp,
        lambda il: Attention.read(hp, il, sub_norm="attn_sub_norm"),
        lambda il: FFN.read(hp, il, sub_norm="ffn_sub_norm", scaled=True),
        head=Head(tied=True),
    )


ARCHITECTURES = {"bitnet": bitnet}
