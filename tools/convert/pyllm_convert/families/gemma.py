"""Gemma 2 and 3: norms on both sides of a layer's parts, windows on most layers, norms multiplied by 1 + weight."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pyllm.errors import ModelError
from pyllm_convert.checkpoint import text_config
from pyllm_convert.families.base import Family


class Gemma2(Family):
    """Soft caps on scores and logits."""

    arch = "gemma2"
    defaults: ClassVar[Mapping[str, Any]] = {
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 8192,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
    }
    act = "gelu_pytorch_tanh"
    norm_offset = 1.0
    window_period = 2
    tied = True
    layer_names: ClassVar[dict[str, str]] = Family.layer_names | {
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    }
    bidirectional: ClassVar[bool] = False
    """Tokens see later ones."""
    own_output: ClassVar[bool] = False
    """The architecture may have an output matrix of its own."""
    wide_head_layers: ClassVar[int] = 46
    """Layers of the model of 27 billion, for which engines scale scores by n_embd / n_heads, for others by head_dim."""

    def metadata(self) -> dict[str, Any]:
        self.refuse("use_bidirectional_attention", self.bidirectional)
        if not self.own_output:
            self.refuse("tie_word_embeddings", True)
        return super().metadata() | self.scale() | self.soft_caps()

    def scale(self) -> dict[str, Any]:
        """The scale of scores, where it is not the one that engines derive."""
        c = self.config
        derived = self.n_embd // self.n_heads if self.n_layers == self.wide_head_layers else self.head_dim
        per_head = c.number("query_pre_attn_scalar")
        if per_head <= 0:
            raise ModelError(f"config.json's query_pre_attn_scalar is {per_head}; it must be positive")
        if per_head == derived:
            return {}
        self.notes.append(f"attention is scaled by 1/sqrt({per_head:g}), which llama.cpp does not read from files")
        return {"attention.scale": 1 / math.sqrt(per_head)}

    def soft_caps(self) -> dict[str, Any]:
        """Caps; engines assume the published ones where a file has none, so they cannot be turned off."""
        found = {}
        for key, where, default in (
            ("attn_logit_softcapping", "attn_logit_softcapping", 50.0),
            ("final_logit_softcapping", "final_logit_softcapping", 30.0),
        ):
            cap = self.config.values.get(key, default)
            if not isinstance(cap, int | float) or not 0 < cap < 1e9:
                raise ModelError(f"config.json's {key} is {cap!r}; gemma2 files always have a cap")
            found[where] = float(cap)
        return found


class Gemma3(Gemma2):
    """Windowed layers rotate with a base of their own; norms of queries and keys, no caps."""

    arch = "gemma3"
    defaults: ClassVar[Mapping[str, Any]] = {
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "num_hidden_layers": 26,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "vocab_size": 262208,
        "head_dim": 256,
        "max_position_embeddings": 131072,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
    }
    window_period = 6
    own_output = True
    wide_head_layers = 62

    @classmethod
    def of(cls, config: Mapping[str, Any], folder: Path | None = None) -> type[Family]:
        return EmbeddingGemma if text_config(config).get("use_bidirectional_attention") else cls

    def soft_caps(self) -> dict[str, Any]:
        """Only the cap on logits has a place."""
        self.refuse("attn_logit_softcapping")
        cap = self.config.optional("final_logit_softcapping")
        return {} if not cap else {"final_logit_softcapping": cap}


class EmbeddingGemma(Gemma3):
    """Tokens see later ones; windows reach half of their size to both sides."""

    arch = "gemma-embedding"
    bidirectional = True
    has_head = False


FAMILIES = {
    "Gemma2ForCausalLM": Gemma2,
    "Gemma3ForCausalLM": Gemma3,
    "Gemma3ForConditionalGeneration": Gemma3,
}
