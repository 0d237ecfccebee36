"""gpt-oss: experts with biases and a clamped gate, attention sinks, a window on every other layer."""

from __future__ import annotations

from pyllm.archs.blocks import Transformer


class GptOss(Transformer):
    """Experts are chosen by logit and weighted by a softmax over those chosen."""

    ffn_norm = "post_attention_norm"
    act = "swiglu_oai"
    window_period = 2
    window_default = 128
    sinks = True
    needs_experts = True
    expert_gating = "softmax_chosen"
    expert_normalize = False


ARCHITECTURES = {"gpt-oss": GptOss}
