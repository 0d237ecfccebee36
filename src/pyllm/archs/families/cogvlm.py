"""CogVLM's language model; its matrices for images are not read."""

from __future__ import annotations

from pyllm.archs.decoder import Decoder, transformer
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.attention import Attention
from pyllm.archs.mixers.feed_forward import FFN
from pyllm.archs.rope import Rope


def cogvlm(hp: HParams) -> Decoder:
    """The rotary base is 10000, whatever the file says."""
    rope = Rope.read(hp, base=10000.0, scaled=False, factors=False)
    return transformer(hp, lambda il: Attention.read(hp, il, rope=rope, scaled=False), lambda il: FFN.read(hp, il))


ARCHITECTURES = {"cogvlm": cogvlm}
