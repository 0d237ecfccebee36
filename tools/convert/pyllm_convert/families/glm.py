"""GLM-4 and GLM-4.5 to 4.7: heads rotated in part; norms on both sides of parts, or experts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from pyllm_convert import lazy
from pyllm_convert.families.base import Family
from pyllm_convert.lazy import Lazy

_LAYER = re.compile(r"(?:^|\.)layers\.(\d{1,5})\.")
_SIGMOID = 2
"""Number of a way to weight experts (`expert_gating_func`)."""


class Glm4(Family):
    """Rotated pairs are neighbours in the checkpoint as well; gate and up are one matrix."""

    arch = "glm4"
    defaults: ClassVar[Mapping[str, Any]] = {
        "num_key_value_heads": 2,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1.5625e-7,
        "partial_rotary_factor": 0.5,
    }
    rotates_in_part = True
    layer_names: ClassVar[dict[str, str]] = Family.layer_names | {
        "post_self_attn_layernorm": "post_attention_norm",
        "post_attention_layernorm": "ffn_norm",
        "post_mlp_layernorm": "post_ffw_norm",
        "mlp.gate_up_proj": "ffn_up",
    }


class Glm4MoE(Family):
    """Experts after the first layers, beside those that all tokens use; rotated pairs are halves.

    Layers that predict further tokens come after the others, where the checkpoint has them; pyllm does not run them.
    """

    arch = "glm4moe"
    defaults: ClassVar[Mapping[str, Any]] = {
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "partial_rotary_factor": 0.5,
        "n_routed_experts": 128,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 1408,
        "first_k_dense_replace": 1,
        "routed_scaling_factor": 1.0,
        "norm_topk_prob": True,
        "n_group": 1,
    }
    rotates_in_part = True
    layer_names: ClassVar[dict[str, str]] = Family.layer_names | {
        "post_attention_layernorm": "post_attention_norm",
        "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
        "mlp.shared_experts.up_proj": "ffn_up_shexp",
        "mlp.shared_experts.down_proj": "ffn_down_shexp",
        "eh_proj": "nextn.eh_proj",
        "embed_tokens": "nextn.embed_tokens",
        "enorm": "nextn.enorm",
        "hnorm": "nextn.hnorm",
        "shared_head.head": "nextn.shared_head_head",
        "shared_head.norm": "nextn.shared_head_norm",
    }

    def look(self, stored: Mapping[str, Lazy]) -> None:
        named = self.config.integer("num_nextn_predict_layers", "num_mtp_layers", default=0, least=0, most=64)
        layers = {int(found[1]) for name in stored if (found := _LAYER.search(name))}
        self.n_next = sum(self.n_layers + i in layers for i in range(named))

    def metadata(self) -> dict[str, Any]:
        c = self.config
        self.refuse("n_group", 1)
        return super().metadata() | {
            "expert_feed_forward_length": c.integer("moe_intermediate_size"),
            "expert_shared_count": c.integer("n_shared_experts"),
            "leading_dense_block_count": c.integer("first_k_dense_replace", least=0),
            "expert_gating_func": _SIGMOID,
            "expert_weights_scale": c.number("routed_scaling_factor"),
            "expert_weights_norm": c.flag("norm_topk_prob"),
            "expert_group_count": 1,
            "expert_group_used_count": 1,
            "nextn_predict_layers": self.n_next,
        }

    def layer_tensor(self, name: str, t: Lazy) -> Iterator[tuple[str, Lazy]]:
        if name == "mlp.gate.e_score_correction_bias":
            yield "exp_probs_b.bias", lazy.require(t, 1)
            return
        yield from super().layer_tensor(name, t)


FAMILIES = {"Glm4ForCausalLM": Glm4, "Glm4MoeForCausalLM": Glm4MoE}
