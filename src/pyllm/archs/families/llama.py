"""Llama and models of its layout: Llama 1 to 4, Mistral, Mixtral, Ministral 3, SmolLM."""

from __future__ import annotations

from typing import Any

from pyllm.archs.decoder import Decoder, Mixer, transformer
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.attention import Attention, PositionFactors
from pyllm.archs.mixers.feed_forward import FFN, feed_forward, mixture
from pyllm.archs.rope import Rope, Scaling

_CHUNK = 8192
"""Positions of Llama 4's chunks, and of steps of its scales."""
_EXPERTS_WITHOUT_QK_NORM = 128
"""Experts of Llama 4 Maverick, which is known by them."""


def llama(hp: HParams, q_scale: PositionFactors | None = None) -> Decoder:
    """Dense, or a mixture of experts if the file has an expert count (Mixtral)."""
    return transformer(
        hp,
        lambda il: Attention.read(hp, il, interleaved=True, q_scale=q_scale),
        lambda il: feed_forward(hp, il, scaled=True),
    )


def llama_embed(hp: HParams) -> Decoder:
    """Llama whose tokens see later ones, for embeddings."""
    return transformer(
        hp,
        lambda il: Attention.read(hp, il, interleaved=True, reach="whole"),
        lambda il: feed_forward(hp, il, scaled=True),
        head=None,
    )


def mistral3(hp: HParams) -> Decoder:
    """Ministral 3: queries are scaled by position beyond the original context."""
    scale = hp.number("attention.temperature_scale", 0.0)
    return llama(hp, PositionFactors(scale, Scaling.read(hp, hp.n_ctx_train).n_ctx_orig) if scale else None)


def llama4(hp: HParams) -> Decoder:
    """Chunks on three of four layers; the fourth has no rotary positions, and queries scaled by position. Sizes of
    chunks and scales are not in files. Experts are in every `interleave_moe_layer_step`-th layer."""
    whole = hp.metadata.get(f"{hp.arch}.attention.sliding_window") == 0
    chunked = [False] * hp.n_layers if whole else hp.pattern("attention.sliding_window_pattern", hp.n_layers, 4)
    rope, base = Rope.read(hp, interleaved=True), hp.window_rope_base
    local = rope if base == hp.rope_base else Rope.read(hp, interleaved=True, base=base)
    qk_norm = "plain" if hp.n_experts != _EXPERTS_WITHOUT_QK_NORM else "none"
    without_rope = hp.n_layers if whole else 4
    step = hp.integer("interleave_moe_layer_step")

    def attention(il: int) -> Attention:
        options: dict[str, Any] = {"reach": "chunked", "window": _CHUNK} if chunked[il] else {}
        if (il + 1) % without_rope:
            options |= {"rope": local if chunked[il] else rope, "rope_first": True, "qk_norm": qk_norm}
        else:
            options |= {"rope": None, "q_scale": None if whole else PositionFactors(0.1, _CHUNK, 1)}
        return Attention.read(hp, il, **options)

    def experts(il: int) -> Mixer:
        if (il + 1) % step:
            return FFN.read(hp, il)
        return mixture(hp, il, n_shared=hp.n_ff_expert(il), gating="sigmoid", normalize=False, weighs_input=True)

    return transformer(hp, attention, experts)


def smollm3(hp: HParams) -> Decoder:
    """Every fourth layer has no rotary positions."""
    rope = Rope.read(hp, interleaved=True)
    return transformer(
        hp,
        lambda il: Attention.read(hp, il, rope=rope if (il + 1) % 4 else None),
        lambda il: feed_forward(hp, il),
    )


ARCHITECTURES = {
    "llama": llama,
    "llama-embed": llama_embed,
    "llama4": llama4,
    "mistral3": mistral3,
    "smollm3": smollm3,
}
