"""Kimi Linear and Ling 3: Kimi Delta Attention on most layers, latent attention on those that have KV heads."""

from __future__ import annotations

from pyllm.archs.decoder import Decoder, Mixer, transformer
from pyllm.archs.families.deepseek import n_shared_columns
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.combine import Sum
from pyllm.archs.mixers.delta import KimiDeltaAttention
from pyllm.archs.mixers.feed_forward import FFN, Experts, feed_forward, limited, limits
from pyllm.archs.mixers.latent import LatentAttention
from pyllm.archs.rope import Rope
from pyllm.errors import ModelError


def kimi_linear(hp: HParams) -> Decoder:
    """No rotary positions."""
    delta, gating, kv_heads = KimiDeltaAttention.read(hp), hp.gating("softmax"), hp.n_kv_heads
    return transformer(
        hp,
        lambda il: LatentAttention.read(hp, il, None) if kv_heads[il] else delta,
        lambda il: feed_forward(hp, il, gating=gating, normalize=True),
    )


def bailingmoe3(hp: HParams) -> Decoder:
    """Decays have a least one, latent attention a gate for each head; activations are limited."""
    least, kv_heads = hp.number("kda.gate_lower_bound"), hp.n_kv_heads
    if least >= 0 or not hp.flag("kda.safe_gate", True):
        raise ModelError(f"{hp.arch}.kda.gate_lower_bound is {least}; decays need a least one below 0")
    delta, rope = KimiDeltaAttention.read(hp, least=least), Rope.read(hp, interleaved=not hp.has_sections)
    most, most_shared = limits(hp, "swiglu_clamp_exp"), limits(hp, "swiglu_clamp_shexp")
    gating, normalize = hp.gating("softmax"), hp.flag("expert_weights_norm", False)

    def ffn(il: int) -> Mixer:
        plain = limited(most_shared[il])
        if il < hp.integer("leading_dense_block_count", 0):
            return FFN.read(hp, il, **plain)
        experts = Experts.read(hp, il, gating=gating, normalize=normalize, **limited(most[il]))
        return Sum((experts, FFN(n_ff=n_shared_columns(hp, il), kind="_shexp", **plain)))

    def attention(il: int) -> Mixer:
        return LatentAttention.read(hp, il, rope, gate="sigmoid", scaled=False) if kv_heads[il] else delta

    return transformer(hp, attention, ffn)


ARCHITECTURES = {"kimi-linear": kimi_linear, "bailingmoe3": bailingmoe3}
