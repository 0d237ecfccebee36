"""OLMo 2 and 3: norms after each part of a block, none before; queries and keys normed over all heads."""

from __future__ import annotations

from pyllm.archs.blocks import Transformer


class Olmo2(Transformer):
    """OLMo 3 adds windows on three of four layers, whose positions are not stretched."""

    attn_norm = None
    attn_post_norm = "post_attention_norm"
    ffn_norm = None
    ffn_post_norm = "post_ffw_norm"
    qk_norm = "width"
    window_period = 4
    window_rope_own = False
    window_rope_scaled = False


ARCHITECTURES = {"olmo2": Olmo2}
