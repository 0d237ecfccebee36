"""Families that differ from Llama and Qwen in an option or two."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from pyllm.archs.decoder import Decoder, Head, Mixer, transformer
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.attention import Attention
from pyllm.archs.mixers.feed_forward import FFN, mixture
from pyllm.archs.rope import Rope


def plain(
    hp: HParams,
    *,
    ffn_norm: str = "ffn_norm",
    ffn: Callable[[HParams, int], Mixer] = FFN.read,
    head: Head | None = None,
    **options: Any,
) -> Decoder:
    """Attention, with options, and a feed-forward network, each with a norm before; biases and fused matrices as the
    file has them."""
    return transformer(
        hp,
        lambda il: Attention.read(hp, il, **options),
        lambda il: ffn(hp, il),
        norms=("attn_norm", ffn_norm),
        head=head or Head(),
    )


def baichuan(hp: HParams) -> Decoder:
    """Baichuan 1 and 2: the model of 7 billion parameters, known by its layers, rotates positions, that of 13 billion
    has ALiBi. Others have none, as in llama.cpp."""
    if hp.n_layers == 32:
        return plain(hp, interleaved=True, out_bias=False)
    return plain(hp, out_bias=False, rope=None, alibi=8.0 if hp.n_layers == 40 else 0.0)


_NO_BIASES: dict[str, Any] = {"out_bias": False, "ffn": partial(FFN.read, biases=False)}
"""Whatever biases of the output projection and the feed-forward network the file has; llama.cpp does not use them."""


def llada(hp: HParams) -> Decoder:
    """A diffusion model: tokens see later ones."""
    rope = Rope.read(hp, interleaved=True, factors=False)
    return plain(hp, rope=rope, reach="whole", **_NO_BIASES)


ARCHITECTURES = {
    "baichuan": baichuan,
    "chatglm": partial(plain, interleaved=True),
    "ernie4_5": partial(plain, interleaved=True, out_bias=False),
    "dream": partial(plain, reach="whole", head=Head(bias=False)),
    "exaone": plain,
    "internlm2": partial(plain, interleaved=True),
    "llada": llada,
    "paddleocr": plain,
    "pangu-embedded": plain,
    "phi3": plain,  # attention.sliding_window is not used: published models do not follow it, nor does llama.cpp
    "phimoe": partial(plain, ffn=mixture),
    "refact": partial(plain, rope=None, alibi=8.0, **_NO_BIASES),
    "seed_oss": partial(plain, ffn_norm="post_attention_norm"),
    "xverse": partial(plain, interleaved=True),
}
