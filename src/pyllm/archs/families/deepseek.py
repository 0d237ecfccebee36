"""DeepSeek 1 to 3 and models of their layouts: first dense layers, then layers of experts and shared experts."""

from __future__ import annotations

import math

from pyllm.archs.decoder import Decoder, transformer
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.attention import Attention, PositionFactors
from pyllm.archs.mixers.feed_forward import feed_forward, mixture
from pyllm.archs.mixers.latent import LatentAttention, yarn
from pyllm.archs.rope import Rope


def deepseek(hp: HParams) -> Decoder:
    return transformer(
        hp,
        lambda il: Attention.read(hp, il, interleaved=True),
        lambda il: feed_forward(hp, il, normalize=False),
    )


def deepseek2_ocr(hp: HParams) -> Decoder:
    """Attention is not DeepSeek 2's; rotated pairs are halves apart."""
    rope = Rope.read(hp, base=10000.0, scaled=False, factors=False)
    gating, normalize = hp.gating("softmax"), hp.flag("expert_weights_norm", False)
    return transformer(
        hp,
        lambda il: Attention.read(hp, il, rope=rope),
        lambda il: feed_forward(hp, il, gating=gating, normalize=normalize),
    )


def bailingmoe(hp: HParams) -> Decoder:
    """Ling: experts on all layers."""
    rope, normalize = Rope.read(hp, interleaved=True), hp.flag("expert_weights_norm", False)
    return transformer(
        hp,
        lambda il: Attention.read(hp, il, rope=rope, scale=1 / math.sqrt(rope.n_rot)),
        lambda il: mixture(hp, il, normalize=normalize),
    )


def dots1(hp: HParams) -> Decoder:
    """dots.llm1: norms of each head's queries and keys."""
    gating, normalize = hp.gating("softmax"), hp.flag("expert_weights_norm", False)
    return transformer(
        hp,
        lambda il: Attention.read(hp, il, qk_norm="head"),
        lambda il: feed_forward(hp, il, gating=gating, normalize=normalize),
    )


def deepseek32(hp: HParams) -> Decoder:
    """DeepSeek 3.2 and GLM 5: latent attention to the best positions, by an indexer; a context that is all among them
    needs no choice, and only such contexts are supported."""
    _check_context(hp)
    rope, factor = yarn(hp)
    gating, normalize = hp.gating("sigmoid"), hp.flag("expert_weights_norm", False)
    return transformer(
        hp,
        lambda il: LatentAttention.read(hp, il, rope, factor=factor),
        lambda il: feed_forward(hp, il, scaled=True, gating=gating, normalize=normalize),
    )


def dots3note(hp: HParams) -> Decoder:
    """Windows on most layers, with sizes of their own; other layers attend to the best positions, as DeepSeek 3.2's. A
    gate for each head."""
    _check_context(hp)
    windows = hp.windows(1)
    ropes = [Rope.read(hp, interleaved=True, factors=False, base=b) for b in (hp.rope_base, hp.window_rope_base)]
    gating, normalize = hp.gating("softmax"), hp.flag("expert_weights_norm", False)

    def attention(il: int) -> LatentAttention:
        window = windows[il]
        return LatentAttention.read(hp, il, ropes[window > 0], window=window, k_norm=True, gate="sigmoid")

    return transformer(hp, attention, lambda il: feed_forward(hp, il, scaled=True, gating=gating, normalize=normalize))


def _check_context(hp: HParams) -> None:
    hp.attend_to_all(hp.integer("attention.indexer.top_k"), "positions")


def deepseek2(hp: HParams) -> Decoder:
    """DeepSeek 2 and 3, Kimi K2, GLM 4.7 Flash, Mistral 4: latent attention. Rotation compensates YaRN's multiplier in
    models of this name, as in llama.cpp."""
    rope, factor = yarn(hp, compensated=hp.arch == "deepseek2")
    scale = hp.number("attention.temperature_scale", 0.0)
    q_scale = PositionFactors(scale, hp.integer("attention.temperature_length")) if scale else None
    gating, normalize = hp.gating(_gating(hp)), hp.flag("expert_weights_norm", False)
    return transformer(
        hp,
        lambda il: LatentAttention.read(hp, il, rope, factor=factor, q_scale=q_scale),
        lambda il: feed_forward(hp, il, gating=gating, normalize=normalize),
    )


def _gating(hp: HParams) -> str:
    """Of files without the key: sigmoid in GLM 4.7 Flash, known by its layers and vocabulary."""
    table = hp.tensors.get("token_embd.weight")
    is_glm = hp.n_layers in (47, 48) and table is not None and table.shape[0] == 154880
    return "sigmoid" if is_glm else "softmax"


def bailingmoe2(hp: HParams) -> Decoder:
    """Ling 2: norms of each head's queries and keys, groups of experts."""
    gating, normalize = hp.gating("softmax"), hp.flag("expert_weights_norm", False)
    return transformer(
        hp,
        lambda il: Attention.read(hp, il, qk_norm="head", scale=1 / math.sqrt(hp.head_dims()[0])),
        lambda il: feed_forward(hp, il, gating=gating, normalize=normalize, n_shared=n_shared_columns(hp, il)),
    )


def n_shared_columns(hp: HParams, il: int) -> int:
    """Columns of shared experts, each as wide as the file says or as an expert."""
    n_ff = hp.integer("expert_shared_feed_forward_length", hp.n_ff_expert(il))
    return n_ff * hp.integer("expert_shared_count", 0)


ARCHITECTURES = {
    "deepseek": deepseek,
    "deepseek2": deepseek2,
    "deepseek2-ocr": deepseek2_ocr,
    "bailingmoe": bailingmoe,
    "bailingmoe2": bailingmoe2,
    "deepseek32": deepseek32,
    "dots1": dots1,
    "dots3note": dots3note,
    "glm-dsa": deepseek32,
    "mistral4": deepseek2,
}
