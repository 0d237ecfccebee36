"""Arctic: experts that read what enters the layer, beside attention and a narrow feed-forward."""

from __future__ import annotations

from pyllm.archs.decoder import Decoder, transformer
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.attention import Attention
from pyllm.archs.mixers.combine import Normed, OfLayerInput, Sum
from pyllm.archs.mixers.feed_forward import FFN, Experts


def arctic(hp: HParams) -> Decoder:
    narrow = FFN(n_ff=hp.n_embd)
    return transformer(
        hp,
        lambda il: Attention.read(hp, il, interleaved=True),
        lambda il: Sum((narrow, OfLayerInput(Normed(Experts.read(hp, il), "ffn_norm_exps")))),
    )


ARCHITECTURES = {"arctic": arctic}
