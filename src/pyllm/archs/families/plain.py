"""Families that differ from Llama and Qwen in an option or two."""

from __future__ import annotations

from functools import partial
from typing import Any

from pyllm.archs.decoder import Decoder, transformer
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.attention import Attention
from pyllm.archs.mixers.feed_forward import FFN


def plain(hp: HParams, *, ffn_norm: str = "ffn_norm", **options: Any) -> Decoder:
    """Attention, with options, and feed-forward, each with a norm before; biases and fused matrices as the file has
    them."""
    return transformer(
        hp,
        lambda il: Attention.read(hp, il, **options),
        lambda il: FFN.read(hp, il),
        norms=("attn_norm", ffn_norm),
    )


ARCHITECTURES = {
    "chatglm": partial(plain, interleaved=True),
    "ernie4_5": partial(plain, interleaved=True, out_bias=False),
    "exaone": plain,
    "internlm2": partial(plain, interleaved=True),
    "paddleocr": plain,
    "pangu-embedded": plain,
    "phi3": plain,  # attention.sliding_window is not used: published models do not follow it, nor does llama.cpp
    "seed_oss": partial(plain, ffn_norm="post_attention_norm"),
    "xverse": partial(plain, interleaved=True),
}
