"""Llama and models of its layout: Llama 1 to 3, Mistral, Mixtral, Ministral 3, SmolLM."""

from __future__ import annotations

from pyllm.archs.decoder import Decoder, transformer
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.attention import Attention
from pyllm.archs.mixers.feed_forward import feed_forward
from pyllm.archs.rope import Rope, Scaling
from pyllm.errors import ModelError


def llama(hp: HParams) -> Decoder:
    """Dense, or a mixture of experts if the file has an expert count (Mixtral)."""
    return transformer(
        hp, lambda il: Attention.read(hp, il, interleaved=True), lambda il: feed_forward(hp, il, scaled=True)
    )


def mistral3(hp: HParams) -> Decoder:
    """Ministral 3: beyond the original context it would scale queries by position."""
    n_ctx_orig = Scaling.read(hp, hp.n_ctx_train).n_ctx_orig
    if hp.number("attention.temperature_scale", 0.0) and hp.n_ctx > n_ctx_orig:
        raise ModelError(
            f"this model scales attention by position beyond {n_ctx_orig} positions, which pyllm does not do; "
            f"load it with a context of at most {n_ctx_orig}"
        )
    return llama(hp)


def smollm3(hp: HParams) -> Decoder:
    """Every fourth layer has no rotary positions."""
    rope = Rope.read(hp, interleaved=True)
    return transformer(
        hp,
        lambda il: Attention.read(hp, il, rope=rope if (il + 1) % 4 else None),
        lambda il: feed_forward(hp, il),
    )


ARCHITECTURES = {"llama": llama, "mistral3": mistral3, "smollm3": smollm3}
