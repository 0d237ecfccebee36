"""LFM2, dense and mixtures of experts: short convolutions, and attention on the layers that have heads of keys."""

from __future__ import annotations

from pyllm.archs.decoder import Decoder, Mixer, transformer
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.attention import Attention
from pyllm.archs.mixers.feed_forward import FFN, feed_forward
from pyllm.archs.mixers.short_conv import GatedConvolution
from pyllm.errors import ModelError

_FINAL_NORM = "token_embd_norm"  # so files call the norm before the head


def lfm2(hp: HParams) -> Decoder:
    """A window, where the file has one, is of all attention."""
    window = hp.integer("attention.sliding_window", 0)
    mixers = _mixers(hp, window)
    return transformer(hp, mixers.__getitem__, lambda il: FFN.read(hp, il), final_norm=_FINAL_NORM)


def lfm2moe(hp: HParams) -> Decoder:
    """The first layers are dense."""
    mixers, gating = _mixers(hp), hp.gating("sigmoid")
    return transformer(hp, mixers.__getitem__, lambda il: feed_forward(hp, il, gating=gating), final_norm=_FINAL_NORM)


def _mixers(hp: HParams, window: int = 0) -> list[Mixer]:
    """Of each layer."""
    if not hp.flag("attention.causal", True):
        raise ModelError(f"{hp.arch}.attention.causal is false; convolutions that read later tokens are not supported")
    convolution = GatedConvolution.read(hp)
    return [
        Attention.read(hp, il, window=window, qk_norm="head") if n else convolution
        for il, n in enumerate(hp.n_kv_heads)
    ]


ARCHITECTURES = {"lfm2": lfm2, "lfm2moe": lfm2moe}
