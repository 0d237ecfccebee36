"""An architecture that pyllm does not have: a llama whose embeddings are multiplied by sqrt(n_embd).

Installing this folder (pip install examples/own_architecture) registers it: files whose `general.architecture` is
"loud" run from then on, on every backend. docs/architectures.md says what else a family may change.
"""

import math

from pyllm.archs.decoder import Decoder, Part
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.attention import Attention
from pyllm.archs.mixers.feed_forward import feed_forward


def loud(hp: HParams) -> Decoder:
    """Found through the entry point in pyproject.toml."""

    def layer(il: int) -> tuple[Part, ...]:
        attention = Attention.read(hp, il, interleaved=True)
        return Part(attention, "attn_norm"), Part(feed_forward(hp, il), "ffn_norm")

    return Decoder.read(hp, layer, embed_scale=math.sqrt(hp.n_embd))
