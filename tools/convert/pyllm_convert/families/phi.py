"""Phi 3 and 4: fused projections, longrope factors, heads that are rotated in part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pyllm_convert.families.base import Family


class Phi3(Family):
    """Fused matrices go into the file as they are."""

    arch = "phi3"
    defaults: ClassVar[Mapping[str, Any]] = {
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
    }
    rope_tensors = True
    rotates_in_part = True
    layer_names: ClassVar[dict[str, str]] = Family.layer_names | {
        "self_attn.qkv_proj": "attn_qkv",
        "mlp.gate_up_proj": "ffn_up",
    }

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        if self.config.get("sliding_window") is not None:
            n = self.config.integer("sliding_window", most=1 << 31)
            if n < self.config.integer("max_position_embeddings", most=1 << 31):
                self.notes.append(f"windows of {n} positions are left out: engines ignore them in phi3 files")


FAMILIES = {"Phi3ForCausalLM": Phi3}
