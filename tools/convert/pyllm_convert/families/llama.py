"""Llama and what shares its layout: Llama 1 to 3, Mistral, Mixtral, SmolLM 3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pyllm.errors import ModelError
from pyllm_convert.families.base import Family


class Llama(Family):
    """Rotated pairs are neighbours."""

    arch = "llama"
    rope_tensors = True
    rotates_neighbours = True


class Mistral(Llama):
    """Llama, by another name; the first of them had windows, which llama files have no place for."""

    defaults: ClassVar[Mapping[str, Any]] = {"num_key_value_heads": 8}

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        inner = self.config.text("model_type", default="mistral")
        if inner not in ("mistral", "mixtral"):
            raise ModelError(f"language models of the type {inner!r} cannot be converted; mistral and mixtral can")
        if self.config.get("sliding_window") is not None:
            n = self.config.integer("sliding_window", most=1 << 31)
            self.notes.append(f"windows of {n} positions are left out: beyond that, attention sees more than trained")


class Mixtral(Mistral):
    """Mistral with experts."""

    defaults: ClassVar[Mapping[str, Any]] = {
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "rms_norm_eps": 1e-5,
    }


class SmolLM3(Llama):
    """Every fourth layer goes without rotary positions."""

    arch = "smollm3"
    defaults: ClassVar[Mapping[str, Any]] = {"num_key_value_heads": 4, "rope_theta": 2000000.0}
    rope_tensors = False
    tied = True

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        kept = self.config.items("no_rope_layers", self.n_layers)
        expected = [int((il + 1) % 4 != 0) for il in range(self.n_layers)]
        if self.config.integer("no_rope_layer_interval", default=4) != 4 or kept not in (None, expected):
            raise ModelError("smollm3 files mean that every fourth layer goes without positions; config.json says else")
        self.refuse("use_sliding_window", False)


FAMILIES = {
    "LlamaForCausalLM": Llama,
    "MistralForCausalLM": Mistral,
    "Mistral3ForConditionalGeneration": Mistral,
    "MixtralForCausalLM": Mixtral,
    "SmolLM3ForCausalLM": SmolLM3,
}
