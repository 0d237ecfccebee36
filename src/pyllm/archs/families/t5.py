"""T5 (arXiv:1910.10683), with gates or without: the encoder alone, and with the decoder that reads what it leaves."""

from __future__ import annotations

from dataclasses import replace

from pyllm.archs.decoder import Decoder, Part, transformer
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.feed_forward import FFN
from pyllm.archs.mixers.relative import CrossAttention, RelativeAttention, SourceKeys, heads_of
from pyllm.errors import ModelError

_ENCODER, _DECODER = "enc.blk.", "dec.blk."


def t5encoder(hp: HParams) -> Decoder:
    """States of a text's tokens."""
    return _encoder(hp, cache=-1)


def t5(hp: HParams) -> Decoder:
    """An encoder, which leaves keys and values of a source; a decoder, whose layers attend to them."""
    sizes, n_layers = heads_of(hp), hp.integer("decoder_block_count", hp.n_layers)
    if n_layers != hp.n_layers:
        raise ModelError(
            f"{hp.arch} has {hp.n_layers} layers in its encoder and {n_layers} in its decoder, not as many"
        )

    def layer(il: int) -> tuple[Part, ...]:
        return (
            Part(RelativeAttention.read(hp, f"{_DECODER}0.", "causal"), "attn_norm"),
            Part(CrossAttention(sizes, il), "cross_attn_norm"),
            Part(_feed_forward(hp, _DECODER, il), "ffn_norm"),
        )

    states = (sizes,) * n_layers
    encoder = replace(_encoder(hp, cache=0), states=states, leaves=SourceKeys(_DECODER, n_layers, sizes))
    return Decoder.read(hp, layer, prefix=_DECODER, final_norm="dec.output_norm", states=states, encoder=encoder)


def _encoder(hp: HParams, cache: int) -> Decoder:
    """`cache`: number of the KV cache that all layers use, one after another; -1: one of their own."""
    return transformer(
        hp,
        lambda il: RelativeAttention.read(hp, f"{_ENCODER}0.", "whole", cache),
        lambda il: _feed_forward(hp, _ENCODER, il),
        prefix=_ENCODER,
        final_norm="enc.output_norm",
        head=None,
    )


def _feed_forward(hp: HParams, prefix: str, il: int) -> FFN:
    gated = hp.has(f"{prefix}{il}.ffn_gate.weight")
    return FFN.read(hp, il, act="gelu" if gated else "relu", gated=gated)


ARCHITECTURES = {"t5": t5, "t5encoder": t5encoder}
