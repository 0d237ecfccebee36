"""Experts with limited activations: Maple, Step 3.5."""

from __future__ import annotations

from pyllm.archs.decoder import Decoder, Head, Mixer, NextTokens, transformer
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.attention import Attention
from pyllm.archs.mixers.combine import Sum
from pyllm.archs.mixers.feed_forward import FFN, Experts, limited, limits
from pyllm.archs.rope import Rope


def maple(hp: HParams) -> Decoder:
    """Windows by the file's pattern; only layers with one have positions."""
    windows, most = hp.windows(1), limits(hp, "swiglu_clamp_exp")
    ropes = None, Rope.read(hp, base=hp.window_rope_base, windowed=True, factors=False)

    def experts(il: int) -> Mixer:
        act = "swiglu_clamp" if most[il] else "silu"
        return Experts.read(hp, il, act=act, limit=most[il])

    return transformer(
        hp,
        lambda il: Attention.read(hp, il, window=windows[il], ropes=ropes, qk_norm="head", out_bias=False),
        experts,
        head=Head(tied=False),
    )


def step35(hp: HParams) -> Decoder:
    """A gate for each head; windows by the file's pattern, with other numbers of heads; other layers rotate half of
    their columns. The first layers are dense."""
    windows = hp.windows(1)
    most, most_shared = limits(hp, "swiglu_clamp_exp"), limits(hp, "swiglu_clamp_shexp")
    local = Rope.read(hp, base=hp.window_rope_base, windowed=True, factors=False)
    ropes = Rope.read(hp, share=0.5), local
    gating, normalize = hp.gating("sigmoid"), hp.flag("expert_weights_norm", False)

    def attention(il: int) -> Attention:
        qk_norm = "head" if hp.has(f"blk.{il}.attn_q_norm.weight") else "none"
        gate = "sigmoid" if hp.has(f"blk.{il}.attn_gate.weight") else None
        return Attention.read(hp, il, window=windows[il], ropes=ropes, qk_norm=qk_norm, gate=gate, out_bias=False)

    def ffn(il: int) -> Mixer:
        plain = limited(most_shared[il])
        if not hp.has(f"blk.{il}.ffn_gate_inp.weight"):
            return FFN.read(hp, il, **plain)
        experts = Experts.read(hp, il, gating=gating, normalize=normalize, **limited(most[il]))
        n_shared = hp.integer("expert_shared_feed_forward_length")
        return Sum((experts, FFN(n_ff=n_shared, kind="_shexp", **plain)))

    return transformer(hp, attention, ffn, head=Head(tied=False), next_tokens=NextTokens(normed=False))


ARCHITECTURES = {"maple": maple, "step35": step35}
