"""gpt-oss: experts with biases and a clamped gate, attention sinks, a window on every other layer."""

from __future__ import annotations

from pyllm.archs.decoder import Decoder, transformer
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.attention import Attention
from pyllm.archs.mixers.feed_forward import mixture
from pyllm.archs.rope import Rope


def gpt_oss(hp: HParams) -> Decoder:
    """Experts are chosen by logit and weighted by a softmax over those chosen."""
    windows = hp.windows(2, 128)
    ropes = Rope.read(hp), Rope.read(hp, base=hp.window_rope_base, windowed=True)
    return transformer(
        hp,
        lambda il: Attention.read(hp, il, window=windows[il], ropes=ropes, sinks=True),
        lambda il: mixture(hp, il, act="swiglu_oai", gating="softmax_chosen", normalize=False),
        norms=("attn_norm", "post_attention_norm"),
    )


ARCHITECTURES = {"gpt-oss": gpt_oss}
