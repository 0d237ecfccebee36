"""MiniMax: experts; lightning attention on most layers (01), norms of all queries and of all keys (M2), or attention to
some blocks (M3)."""

from __future__ import annotations

from pyllm.archs.decoder import Decoder, Head, Part, transformer
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.attention import Attention
from pyllm.archs.mixers.combine import Beside
from pyllm.archs.mixers.feed_forward import feed_forward, mixture
from pyllm.archs.mixers.lightning import LightningAttention


def minimax_01(hp: HParams) -> Decoder:
    """Attention on the last of each eight layers. What parts add to is not the stream, but its norm."""
    scale = hp.number("residual_scale")
    recurrent = hp.pattern("attention.recurrent_layers", hp.n_layers, hp.integer("full_attention_interval", 8))

    def layer(il: int) -> tuple[Part, ...]:
        attention = LightningAttention.read(hp, il) if recurrent[il] else Attention.read(hp, il)
        return (
            Part(Beside(attention, scale), "attn_norm", residual=False),
            Part(Beside(mixture(hp, il), scale), "ffn_norm", residual=False),
        )

    return Decoder.read(hp, layer)


def minimax_m2(hp: HParams) -> Decoder:
    gating = hp.gating("sigmoid")
    return transformer(
        hp, lambda il: Attention.read(hp, il, qk_norm="width"), lambda il: mixture(hp, il, gating=gating)
    )


def minimax_m3(hp: HParams) -> Decoder:
    """M3 attends to the best blocks of positions, by an indexer; a context that is all among them needs no choice, and
    only such contexts are supported."""
    dense = hp.integer("attention.indexer.top_k") * hp.integer("attention.indexer.block_size")
    hp.attend_to_all(dense, "blocks of positions")
    gating, normalize = hp.gating("sigmoid"), hp.flag("expert_weights_norm", False)
    return transformer(
        hp,
        lambda il: Attention.read(hp, il, qk_norm="head", out_bias=False),
        lambda il: feed_forward(hp, il, act="swiglu_oai", gating=gating, normalize=normalize),
        head=Head(tied=False),
    )


ARCHITECTURES = {"minimax-01": minimax_01, "minimax-m2": minimax_m2, "minimax-m3": minimax_m3}
