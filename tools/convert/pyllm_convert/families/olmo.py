"""OLMo: norms without weights; OLMo 2 and 3: norms after each part of a layer, none before, and queries and keys normed
over all heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pyllm.errors import ModelError
from pyllm_convert.families.base import Family


class Olmo(Family):
    """The file's rotated pairs are neighbours."""

    arch = "olmo"
    layer_norm = True
    rotates_neighbours = True
    defaults: ClassVar[Mapping[str, Any]] = {"max_position_embeddings": 2048, "layer_norm_eps": 1e-5}

    def metadata(self) -> dict[str, Any]:
        self.refuse("attention_bias", False)
        keys = super().metadata()
        if self.config.get("clip_qkv") is not None:
            keys["attention.clamp_kqv"] = self.config.number("clip_qkv")
        return keys


class Olmo2(Family):
    """No windows."""

    arch = "olmo2"
    defaults: ClassVar[Mapping[str, Any]] = {"max_position_embeddings": 2048, "rms_norm_eps": 1e-5}
    layer_names: ClassVar[dict[str, str]] = Family.layer_names | {
        "post_attention_layernorm": "post_attention_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    }


class Olmo3(Olmo2):
    """Windows on three of four layers, whose positions are not stretched."""

    defaults: ClassVar[Mapping[str, Any]] = {
        "max_position_embeddings": 65536,
        "rms_norm_eps": 1e-5,
        "sliding_window": 4096,
        "rope_theta": 500000.0,
    }
    window_period = 4

    def metadata(self) -> dict[str, Any]:
        keys = super().metadata()
        if keys.pop("rope.freq_base_swa", keys["rope.freq_base"]) != keys["rope.freq_base"]:
            raise ModelError("windowed layers have a rotary base of their own, for which olmo2 files have no place")
        return keys


FAMILIES = {"OlmoForCausalLM": Olmo, "Olmo2ForCausalLM": Olmo2, "Olmo3ForCausalLM": Olmo3}
