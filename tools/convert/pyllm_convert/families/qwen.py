"""Qwen 2, 2.5 and 3, dense and mixtures of experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pyllm_convert.families.base import Family


class Qwen2(Family):
    """Biases on queries, keys and values."""

    arch = "qwen2"

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        if self.config.flag("use_sliding_window"):
            self.notes.append(f"windows are left out: {self.arch} files have no place for them")


class Qwen2MoE(Qwen2):
    """Every layer's feed-forward is a mixture of experts, beside one that all tokens use, through a gate."""

    arch = "qwen2moe"
    defaults: ClassVar[Mapping[str, Any]] = {
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        "norm_topk_prob": False,
    }
    layer_names: ClassVar[dict[str, str]] = Family.layer_names | {
        "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
        "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
        "mlp.shared_expert.up_proj": "ffn_up_shexp",
        "mlp.shared_expert.down_proj": "ffn_down_shexp",
    }

    def metadata(self) -> dict[str, Any]:
        self.refuse("norm_topk_prob", False)
        self.refuse("decoder_sparse_step", 1)
        self.refuse("mlp_only_layers", [])
        return super().metadata() | {
            "expert_feed_forward_length": self.config.integer("moe_intermediate_size"),
            "expert_shared_feed_forward_length": self.config.integer("shared_expert_intermediate_size"),
        }


class Qwen3(Qwen2):
    """Norms of each head's queries and keys."""

    arch = "qwen3"
    defaults: ClassVar[Mapping[str, Any]] = {"head_dim": 128}


class Qwen3MoE(Qwen3):
    """Every layer's feed-forward is a mixture of experts, whose weights sum to one."""

    arch = "qwen3moe"
    defaults: ClassVar[Mapping[str, Any]] = {
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "norm_topk_prob": False,
    }

    def metadata(self) -> dict[str, Any]:
        self.refuse("norm_topk_prob", True)
        self.refuse("decoder_sparse_step", 1)
        self.refuse("mlp_only_layers", [])
        return super().metadata() | {"expert_feed_forward_length": self.config.integer("moe_intermediate_size")}


FAMILIES = {
    "Qwen2ForCausalLM": Qwen2,
    "Qwen2MoeForCausalLM": Qwen2MoE,
    "Qwen3ForCausalLM": Qwen3,
    "Qwen3MoeForCausalLM": Qwen3MoE,
}
