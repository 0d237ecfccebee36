"""Talkie: norms without weights, a gain for each head's queries, and in each layer a scaled addition of the
embeddings."""

from __future__ import annotations

from pyllm.archs.decoder import Decoder, Head, Part
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.attention import Attention
from pyllm.archs.mixers.combine import OfEmbedding
from pyllm.archs.mixers.embedding import Times
from pyllm.archs.mixers.feed_forward import FFN


def talkie(hp: HParams) -> Decoder:
    def layer(il: int) -> tuple[Part, ...]:
        return (
            Part(Attention.read(hp, il, qk_norm="gain", rope_first=True), ""),
            Part(FFN.read(hp, il, scaled="down"), ""),
            Part(OfEmbedding(Times("layer_output_scale"))),
        )

    head = Head(tied=False, scale=hp.number("logit_scale"))
    return Decoder.read(hp, layer, embed_norm="", final_norm="", head=head)


ARCHITECTURES = {"talkie": talkie}
