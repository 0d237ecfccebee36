"""MiniMax: experts; lightning attention on most layers (01), or norms of all queries and of all keys (M2)."""

from __future__ import annotations

from pyllm.archs.decoder import Decoder, Part, transformer
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.attention import Attention
from pyllm.archs.mixers.combine import Beside
from pyllm.archs.mixers.feed_forward import mixture
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


ARCHITECTURES = {"minimax-01": minimax_01, "minimax-m2": minimax_m2}
