"""PLaMo 1: parallel attention and feed-forward; PLaMo 2 and 3: norms on both sides of parts; states, or windows."""

from __future__ import annotations

from pyllm.archs.decoder import Decoder, Part, transformer
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.attention import Attention
from pyllm.archs.mixers.combine import Sum
from pyllm.archs.mixers.feed_forward import FFN
from pyllm.archs.mixers.mamba import PlamoMamba
from pyllm.archs.rope import Rope

_POSTS = ("post_attention_norm", "post_ffw_norm")


def plamo(hp: HParams) -> Decoder:
    """One norm for both parts."""
    return Decoder.read(hp, lambda il: (Part(Sum((Attention.read(hp, il), FFN.read(hp, il))), "attn_norm"),))


def plamo2(hp: HParams) -> Decoder:
    """Mamba in layers without KV heads."""
    rope, kv_heads = Rope.read(hp, factors=False), hp.n_kv_heads
    return transformer(
        hp,
        lambda il: (
            Attention.read(hp, il, rope=rope, qk_norm="head", scaled=False) if kv_heads[il] else PlamoMamba.read(hp)
        ),
        lambda il: FFN.read(hp, il),
        posts=_POSTS,
    )


def plamo3(hp: HParams) -> Decoder:
    """A window on seven of eight layers, which have their own rotary base."""
    windows = hp.windows(8) if hp.integer("attention.sliding_window", 0) else [0] * hp.n_layers
    base = hp.number("rope.freq_base_swa", 10000.0)
    ropes = Rope.read(hp), Rope.read(hp, base=base, scaled=False, windowed=True)
    return transformer(
        hp,
        lambda il: Attention.read(hp, il, window=windows[il], ropes=ropes, qk_norm="head", scaled=False),
        lambda il: FFN.read(hp, il),
        posts=_POSTS,
    )


ARCHITECTURES = {"plamo": plamo, "plamo2": plamo2, "plamo3": plamo3}
