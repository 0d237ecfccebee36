"""Ernie 4.5 with experts; dense Ernie models are in `plain`."""

from __future__ import annotations

from pyllm.archs.decoder import Decoder, Mixer, transformer
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.attention import Attention
from pyllm.archs.mixers.feed_forward import FFN, mixture


def ernie4_5_moe(hp: HParams) -> Decoder:
    """Experts on every k-th layer after the first dense ones."""
    first, step = hp.integer("leading_dense_block_count", 0), hp.integer("interleave_moe_layer_step")

    def ffn(il: int) -> Mixer:
        return mixture(hp, il) if il >= first and (il + 1) % step == 0 else FFN.read(hp, il)

    return transformer(hp, lambda il: Attention.read(hp, il, interleaved=True, out_bias=False), ffn)


ARCHITECTURES = {"ernie4_5-moe": ernie4_5_moe}
