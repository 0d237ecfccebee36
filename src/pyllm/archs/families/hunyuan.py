"""Hunyuan 1 to 3, dense and mixtures of experts; the first two norm queries and keys after their rotation."""

from __future__ import annotations

from pyllm.archs.decoder import Decoder, Mixer, NextTokens, transformer
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.attention import Attention
from pyllm.archs.mixers.feed_forward import FFN, mixture
from pyllm.archs.rope import Rope


def hunyuan(hp: HParams) -> Decoder:
    """Dense; a stretched context raises the base (NTK)."""
    dim, _ = hp.head_dims()
    alpha = hp.number("rope.scaling.alpha", 1.0)
    rope = Rope.read(hp, base=hp.rope_base * alpha ** (dim / (dim - 2)))
    return transformer(
        hp,
        lambda il: Attention.read(hp, il, rope=rope, qk_norm="head", rope_first=True),
        lambda il: FFN.read(hp, il),
    )


def hunyuan_moe(hp: HParams) -> Decoder:
    """Experts, and one shared expert."""
    n_ff, shared = hp.per_layer("feed_forward_length"), hp.integer("expert_shared_feed_forward_length", 0)
    return transformer(
        hp,
        lambda il: Attention.read(hp, il, qk_norm="head", rope_first=True),
        lambda il: mixture(hp, il, n_ff=n_ff[il], n_shared=shared or n_ff[il]),
    )


def hy_v3(hp: HParams) -> Decoder:
    """Layers with a router have experts and a shared one; the first layers are dense."""
    shared = hp.integer("expert_shared_feed_forward_length", 0)
    gating, normalize = hp.gating("sigmoid"), hp.flag("expert_weights_norm", False)

    def ffn(il: int) -> Mixer:
        if not hp.has(f"blk.{il}.ffn_gate_inp.weight"):
            return FFN.read(hp, il, scaled=True)
        n_shared = shared or hp.n_ff_expert(il)
        return mixture(hp, il, n_shared=n_shared, gating=gating, normalize=normalize, scaled=True)

    return transformer(hp, lambda il: Attention.read(hp, il, qk_norm="head"), ffn, next_tokens=NextTokens())


ARCHITECTURES = {"hunyuan-dense": hunyuan, "hunyuan_vl": hunyuan, "hunyuan-moe": hunyuan_moe, "hy_v3": hy_v3}
