"""Seed-OSS: biases on queries, keys and values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pyllm_convert.families.base import Family


class SeedOss(Family):
    """Llama's layers under other names; rotated pairs are halves."""

    arch = "seed_oss"
    defaults: ClassVar[Mapping[str, Any]] = {
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 524288,
    }
    layer_names: ClassVar[dict[str, str]] = Family.layer_names | {"post_attention_layernorm": "post_attention_norm"}

    def metadata(self) -> dict[str, Any]:
        self.refuse("attention_out_bias", False)
        self.refuse("mlp_bias", False)
        return super().metadata()


FAMILIES = {"SeedOssForCausalLM": SeedOss}
