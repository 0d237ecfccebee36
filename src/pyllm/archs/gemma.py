"""Gemma 2 and 3: norms on both sides of a block's parts, windows on most layers, scaled embeddings."""

from __future__ import annotations

import math
from typing import ClassVar

from pyllm.archs.blocks import Transformer


class Gemma2(Transformer):
    """A window on every other layer; soft caps on scores and logits."""

    attn_post_norm = "post_attention_norm"
    ffn_post_norm = "post_ffw_norm"
    act = "gelu"
    embed_scaled = True
    tied_output: ClassVar[bool | None] = True
    window_period = 2
    window_default = 4096
    attn_softcap: ClassVar[float | None] = 50.0
    logit_softcap = 30.0
    wide_head_layers: ClassVar[int] = 46
    """Layers of the model of 27 billion, whose scores are scaled by n_embd / n_heads, not by head_dim."""

    def attention_scale(self) -> float:
        per_head = self.n_embd / self.n_heads[0] if self.n_layers == self.wide_head_layers else self.head_dim
        return self.hp.number("attention.scale", 1 / math.sqrt(per_head))


class Gemma3(Gemma2):
    """A window on five of six layers, which rotate with a base of their own; norms of queries and keys, no caps."""

    qk_norm = "head"
    tied_output = None
    window_period = 6
    window_rope_base = 10000.0
    window_rope_scaled = False
    attn_softcap = None
    logit_softcap = 0.0
    wide_head_layers = 62


ARCHITECTURES = {"gemma2": Gemma2, "gemma3": Gemma3}
