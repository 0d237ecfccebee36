"""Exaone 4 and later: windows on three of four layers, and positions only on these; Exaone 3 is in `plain`."""

from __future__ import annotations

from pyllm.archs.decoder import Decoder, transformer
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.attention import Attention
from pyllm.archs.mixers.feed_forward import feed_forward
from pyllm.archs.rope import Rope

_LAYERS_WITH_WINDOWS = 64
"""Layers of the model of 32 billion parameters; the smaller ones have no windows, and positions on all layers, unless
the file has a pattern of windows."""


def exaone4(hp: HParams) -> Decoder:
    """Norms after each part, none before."""
    windows = hp.windows(4 if hp.n_layers == _LAYERS_WITH_WINDOWS else 0, 4096)
    rope = Rope.read(hp)
    ropes = None if any(windows) else rope, rope
    return transformer(
        hp,
        lambda il: Attention.read(hp, il, window=windows[il], ropes=ropes, qk_norm="head"),
        lambda il: feed_forward(hp, il),
        norms=(None, None),
        posts=("post_attention_norm", "post_ffw_norm"),
    )


def exaone_moe(hp: HParams) -> Decoder:
    """Experts, and one shared expert."""
    windows = hp.windows(4, 128)
    ropes = None, Rope.read(hp)
    gating, normalize = hp.gating("sigmoid"), hp.flag("expert_weights_norm", False)
    shared = hp.integer("expert_shared_feed_forward_length", 0)
    return transformer(
        hp,
        lambda il: Attention.read(hp, il, window=windows[il], ropes=ropes, qk_norm="head"),
        lambda il: feed_forward(hp, il, n_shared=shared or hp.n_ff_expert(il), gating=gating, normalize=normalize),
    )


ARCHITECTURES = {"exaone4": exaone4, "exaone-moe": exaone_moe}
