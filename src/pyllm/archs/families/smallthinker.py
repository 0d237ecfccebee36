"""SmallThinker: the router reads the layer's input, so that experts can be loaded during attention."""

from __future__ import annotations

from pyllm.archs.decoder import Decoder, transformer
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.attention import Attention
from pyllm.archs.mixers.feed_forward import mixture
from pyllm.archs.rope import Rope

_WINDOW = 4096
"""Window size, as in llama.cpp; the file only says whether there are windows."""


def smallthinker(hp: HParams) -> Decoder:
    """With windows, all layers but the first of each four have one, and only these have positions."""
    local = hp.windows(4, dense_first=True) if hp.integer("attention.sliding_window", 0) else []
    gating = hp.gating("softmax")
    rope = Rope.read(hp, base=hp.window_rope_base) if local else Rope.read(hp)

    def attention(il: int) -> Attention:
        window = _WINDOW if local and local[il] else 0
        return Attention.read(hp, il, window=window, rope=None if local and il % 4 == 0 else rope)

    return transformer(hp, attention, lambda il: mixture(hp, il, act="relu", gating=gating, routed_by_layer_input=True))


ARCHITECTURES = {"smallthinker": smallthinker}
