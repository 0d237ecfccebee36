"""Mamba 1 and 2, and Falcon-H1, whose layers have attention and Mamba 2 side by side."""

from __future__ import annotations

from pyllm.archs.decoder import Decoder, Part, transformer
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.attention import Attention
from pyllm.archs.mixers.combine import Sum
from pyllm.archs.mixers.feed_forward import FFN, Experts
from pyllm.archs.mixers.mamba import Mamba1, Mamba2
from pyllm.archs.rope import Rope


def mamba(hp: HParams) -> Decoder:
    """Layers of nothing but Mamba 1; Falcon-Mamba norms its steps, inputs and outputs."""
    return Decoder.read(hp, lambda il: (Part(Mamba1.read(hp), "attn_norm"),))


def mamba2(hp: HParams) -> Decoder:
    return Decoder.read(hp, lambda il: (Part(Mamba2.read(hp), "attn_norm"),))


def falcon_h1(hp: HParams) -> Decoder:
    """Its multipliers are in the file's weights."""
    rope = Rope.read(hp, factors=False)
    return transformer(
        hp,
        lambda il: Sum((Attention.read(hp, il, rope=rope, out_bias=False), Mamba2.read(hp))),
        lambda il: FFN.read(hp, il),
    )


def jamba(hp: HParams) -> Decoder:
    """Mamba 1, or attention without positions where a layer has KV heads; experts where the file has a router."""
    kv_heads = hp.n_kv_heads

    def feed_forward(il: int) -> FFN | Experts:
        if hp.has(f"blk.{il}.ffn_gate_inp.weight"):
            return Experts.read(hp, il, normalize=False)
        return FFN.read(hp, il)

    return transformer(
        hp, lambda il: Attention.read(hp, il, rope=None) if kv_heads[il] else Mamba1.read(hp), feed_forward
    )


ARCHITECTURES = {"mamba": mamba, "mamba2": mamba2, "falcon-h1": falcon_h1, "jamba": jamba}
