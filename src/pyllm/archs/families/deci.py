"""DeciLM and Llama Nemotron: layers without attention, or with one matrix in its place, or without feed-forward."""

from __future__ import annotations

from pyllm.archs.decoder import Decoder, Part
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.attention import Attention
from pyllm.archs.mixers.combine import Projection
from pyllm.archs.mixers.feed_forward import FFN


def deci(hp: HParams) -> Decoder:
    n_ff = hp.per_layer("feed_forward_length")

    def layer(il: int) -> tuple[Part, ...]:
        parts = []
        if hp.n_heads[il]:
            mix = Attention.read(hp, il, interleaved=True) if hp.n_kv_heads[il] else Projection("attn_output")
            parts.append(Part(mix, "attn_norm"))
        if n_ff[il]:
            parts.append(Part(FFN(n_ff=n_ff[il]), "ffn_norm"))
        return tuple(parts)

    return Decoder.read(hp, layer)


ARCHITECTURES = {"deci": deci}
