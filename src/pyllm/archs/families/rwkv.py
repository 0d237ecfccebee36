"""RWKV 6 and 7, and models of other families with their time mix in place of attention. None has positions."""

from __future__ import annotations

from pyllm.archs.decoder import LN, Decoder, Head, Part
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.combine import Factor
from pyllm.archs.mixers.feed_forward import FFN
from pyllm.archs.mixers.rwkv import ChannelMix, TimeMix6, TimeMix7

_HEAD = Head(tied=False)


def _time_mix_6(hp: HParams, il: int) -> TimeMix6:
    n, head_dim = _heads(hp)
    return TimeMix6(n, hp.per_layer("attention.head_count_kv", n)[il], head_dim)


def _time_mix_7(hp: HParams, il: int) -> TimeMix7:
    return TimeMix7(*_heads(hp))


def _heads(hp: HParams) -> tuple[int, int]:
    """Number and columns of heads."""
    head_dim = hp.integer("wkv.head_size")
    return hp.n_embd // head_dim, head_dim


def rwkv6(hp: HParams) -> Decoder:
    """The stream is halved after every few layers, if the file says so: its weights are then made for that."""
    every = hp.integer("rescale_every_n_layers", 0)

    def layer(il: int) -> tuple[Part, ...]:
        parts = Part(_time_mix_6(hp, il), "attn_norm"), Part(_channel_mix(hp, il), "attn_norm_2")
        halves = every and (il + 1) % every == 0
        return (*parts, Part(Factor(0.5), residual=False)) if halves else parts

    return Decoder.read(hp, layer, norm=LN.read(hp), embed_norm="token_embd_norm", head=_HEAD)


def rwkv7(hp: HParams) -> Decoder:
    def layer(il: int) -> tuple[Part, ...]:
        return Part(_time_mix_7(hp, il), "attn_norm"), Part(_channel_mix(hp, il), "attn_norm_2")

    return Decoder.read(hp, layer, norm=LN.read(hp), embed_norm="token_embd_norm", head=_HEAD)


def _channel_mix(hp: HParams, il: int) -> ChannelMix:
    return ChannelMix(hp.per_layer("feed_forward_length")[il])


def rwkv6qwen2(hp: HParams) -> Decoder:
    """Qwen 2.5's networks; keys and values may be shared by heads."""

    def layer(il: int) -> tuple[Part, ...]:
        return Part(_time_mix_6(hp, il), "attn_norm"), Part(FFN.read(hp, il), "ffn_norm")

    return Decoder.read(hp, layer, head=_HEAD)


def arwkv7(hp: HParams) -> Decoder:
    def layer(il: int) -> tuple[Part, ...]:
        return Part(_time_mix_7(hp, il), "attn_norm"), Part(FFN.read(hp, il), "ffn_norm")

    return Decoder.read(hp, layer, head=_HEAD)


ARCHITECTURES = {"rwkv6": rwkv6, "rwkv6qwen2": rwkv6qwen2, "rwkv7": rwkv7, "arwkv7": arwkv7}
