"""EXAONE 4: norms after each part of a layer, none before; norms of queries and keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pyllm.errors import ModelError
from pyllm_convert.families.base import Family

_LAYERS_WITH_WINDOWS = 64


class Exaone4(Family):
    """The large model has windows on three of four layers, and the fourth goes without positions."""

    arch = "exaone4"
    defaults: ClassVar[Mapping[str, Any]] = {
        "num_key_value_heads": 32,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
    }
    rope_tensors = True
    window_period = 4
    layer_names: ClassVar[dict[str, str]] = Family.layer_names | {
        "post_attention_layernorm": "post_attention_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    }

    def windows(self) -> dict[str, Any]:
        """The pattern is always there; without a window in config.json, there is none."""
        c = self.config
        if c.values.get("sliding_window", 4096) is None:
            return {}
        n, pattern = c.integer("sliding_window", default=4096, most=1 << 31), self.window_pattern()
        if not any(pattern):
            raise ModelError("config.json has a window for no layer; exaone4 files say so by a sliding_window of null")
        if self.n_layers != _LAYERS_WITH_WINDOWS:
            self.notes.append(
                f"the windows of {n} positions are heeded by pyllm; llama.cpp has them for 64 layers alone"
            )
        return {"attention.sliding_window": n, "attention.sliding_window_pattern": pattern}

    def window_pattern(self) -> list[bool]:
        """By layer_types; or a period; or a word of L (window) and G (all), which repeats."""
        word = self.config.get("sliding_window_pattern")
        if self.config.get("layer_types") is None and isinstance(word, str):
            if not word or set(word) - set("LG"):
                raise ModelError(f"config.json's sliding_window_pattern is {word!r}, not a word of L and G")
            return [word[il % len(word)] == "L" for il in range(self.n_layers)]
        return super().window_pattern()


FAMILIES = {"Exaone4ForCausalLM": Exaone4}
