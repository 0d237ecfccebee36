"""Qwen3-Next and Qwen 3.5 to 3.8: Gated DeltaNet, and on every fourth layer attention with a gate."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pyllm.archs.decoder import Decoder, Mixer, NextTokens, transformer
from pyllm.archs.families.gated import gated_shared
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.attention import Attention
from pyllm.archs.mixers.delta import GatedDeltaNet
from pyllm.archs.mixers.feed_forward import FFN

_NORMS = ("attn_norm", "post_attention_norm")


def qwen35(hp: HParams) -> Decoder:
    """Dense. Files have the heads of values in such an order that key heads are tiled."""
    mixers = _mixers(hp, tiled=True)
    return _decoder(hp, mixers, lambda il: FFN.read(hp, il, scaled=True))


def qwen35moe(hp: HParams) -> Decoder:
    """Experts on all layers, with a gated shared one."""
    mixers = _mixers(hp, tiled=True)
    return _decoder(hp, mixers, lambda il: gated_shared(hp, il, scaled=True))


def qwen3next(hp: HParams) -> Decoder:
    """As Qwen 3.5's mixtures, but for the order of heads, and one matrix for betas and decays."""
    mixers = _mixers(hp)
    return _decoder(hp, mixers, lambda il: gated_shared(hp, il, scaled=True))


def _decoder(hp: HParams, mixers: Sequence[Mixer], feed_forward: Callable[[int], Mixer]) -> Decoder:
    return transformer(hp, mixers.__getitem__, feed_forward, norms=_NORMS, next_tokens=NextTokens())


def _mixers(hp: HParams, *, tiled: bool = False) -> list[Mixer]:
    """Of each layer: attention on the last of each period of the file, or where it says so by layer, and in heads.
    Scales of Qwen3-Next's recurrent layers are not used, as in llama.cpp."""
    recurrent = hp.pattern("attention.recurrent_layers", hp.n_layers, hp.integer("full_attention_interval", 4))
    delta = GatedDeltaNet.read(hp, tiled=tiled, scaled=tiled)
    return [
        delta if flag and il < hp.n_trunk else Attention.read(hp, il, qk_norm="head", gate="sigmoid", gate_in_q=True)
        for il, flag in enumerate(recurrent)
    ]


ARCHITECTURES = {"qwen35": qwen35, "qwen35moe": qwen35moe, "qwen3next": qwen3next}
