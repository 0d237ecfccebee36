"""OLMo 2 and 3: norms after each part of a layer, none before; queries and keys normed over all heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pyllm.errors import ModelError
from pyllm_convert.families.base import Family


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


FAMILIES = {"Olmo2ForCausalLM": Olmo2, "Olmo3ForCausalLM": Olmo3}
