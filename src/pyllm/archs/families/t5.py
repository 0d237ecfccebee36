"""T5's encoder (arXiv:1910.10683), with gates or without."""

from __future__ import annotations

from pyllm.archs.decoder import Decoder, transformer
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.feed_forward import FFN
from pyllm.archs.mixers.relative import RelativeAttention

_ENCODER = "enc.blk."


def t5encoder(hp: HParams) -> Decoder:
    """States of a text's tokens."""

    def feed_forward(il: int) -> FFN:
        gated = hp.has(f"{_ENCODER}{il}.ffn_gate.weight")
        return FFN.read(hp, il, act="gelu" if gated else "relu", gated=gated)

    return transformer(
        hp,
        lambda il: RelativeAttention.read(hp, il, f"{_ENCODER}0."),
        feed_forward,
        prefix=_ENCODER,
        final_norm="enc.output_norm",
        head=None,
    )


ARCHITECTURES = {"t5encoder": t5encoder}
