"""Command R and Cohere 2: layer norms without biases, attention and feed-forward beside each other, logits scaled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pyllm.errors import ModelError
from pyllm_convert import lazy
from pyllm_convert.families.base import Family
from pyllm_convert.lazy import Lazy


class CommandR(Family):
    """Rotated pairs are neighbours in the checkpoint as well. The larger models norm each head's queries and keys, with
    weights of its own: matrices of [heads, head_dim]."""

    arch = "command-r"
    defaults: ClassVar[Mapping[str, Any]] = {
        "max_position_embeddings": 8192,
        "rope_theta": 500000.0,
        "logit_scale": 0.0625,
    }
    layer_norm = True
    tied = True

    def metadata(self) -> dict[str, Any]:
        c = self.config
        self.refuse("tie_word_embeddings", True)
        self.refuse("attention_bias", False)
        self.refuse("rotary_pct", 1, 1.0)
        scale = c.number("logit_scale")
        if scale == 0:
            raise ModelError("config.json's logit_scale is 0; no logits are left")
        keys = super().metadata()
        # Trained beyond what max_position_embeddings says, which older configurations keep small.
        keys["context_length"] = c.integer("model_max_length", "max_position_embeddings", most=1 << 31)
        return {"rope.scaling.type": "none"} | keys | {"logit_scale": scale}

    def transform(self, name: str, t: Lazy) -> Lazy:
        if name.startswith(("self_attn.q_norm.", "self_attn.k_norm.")):
            return lazy.require(t, 2)
        return super().transform(name, t)


class Cohere2(CommandR):
    """Windows on three of four layers; the fourth goes without positions."""

    arch = "cohere2"
    defaults: ClassVar[Mapping[str, Any]] = {
        "max_position_embeddings": 8192,
        "logit_scale": 0.0625,
        "sliding_window": 4096,
    }
    window_period = 4

    def transform(self, name: str, t: Lazy) -> Lazy:
        return Family.transform(self, name, t)


FAMILIES = {"CohereForCausalLM": CommandR, "Cohere2ForCausalLM": Cohere2}
