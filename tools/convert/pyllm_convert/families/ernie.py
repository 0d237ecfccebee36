"""ERNIE 4.5, dense and mixtures of experts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from pyllm.errors import ModelError
from pyllm_convert.families.base import Family
from pyllm_convert.lazy import Lazy


class Ernie4_5(Family):
    """Rotated pairs are neighbours in the checkpoint as well."""

    arch = "ernie4_5"
    defaults: ClassVar[Mapping[str, Any]] = {
        "num_key_value_heads": 2,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
    }
    tied = True

    def metadata(self) -> dict[str, Any]:
        self.refuse("use_bias", False)
        return super().metadata()


class Ernie4_5MoE(Ernie4_5):
    """Experts on every k-th layer after the first ones, beside those that all tokens use. Parts that predict further
    tokens (multi-token prediction) are left out."""

    arch = "ernie4_5-moe"
    defaults: ClassVar[Mapping[str, Any]] = {
        "num_key_value_heads": 4,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "moe_num_experts": 64,
        "moe_num_shared_experts": 2,
        "moe_k": 6,
        "moe_intermediate_size": 1536,
        "moe_layer_start_index": 1,
        "moe_layer_end_index": -1,
        "moe_layer_interval": 1,
    }
    layer_names: ClassVar[dict[str, str]] = Ernie4_5.layer_names | {
        "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
        "mlp.shared_experts.up_proj": "ffn_up_shexp",
        "mlp.shared_experts.down_proj": "ffn_down_shexp",
    }

    def metadata(self) -> dict[str, Any]:
        c = self.config
        self.refuse("moe_layer_end_index", -1, self.n_layers - 1)
        n_ff = c.integer("moe_intermediate_size")
        n_shared = c.integer("moe_num_shared_experts", least=0)
        return super().metadata() | {
            "interleave_moe_layer_step": c.integer("moe_layer_interval"),
            "leading_dense_block_count": c.integer("moe_layer_start_index", least=0),
            "expert_feed_forward_length": n_ff,
            "expert_shared_count": n_shared,
            "expert_shared_feed_forward_length": n_ff * n_shared,
        }

    def own_name(self, name: str) -> str | None:
        own = super().own_name(name)
        return None if own is None or own.startswith("model.mtp_") else own

    def layer_tensor(self, name: str, t: Lazy) -> Iterator[tuple[str, Lazy]]:
        if name.endswith("moe_statics.e_score_correction_bias"):
            if t.shape not in ((1, self.n_experts), (self.n_experts,)):
                raise ModelError(f"tensor {t.name} has the shape {t.shape}, not a number for {self.n_experts} experts")
            yield "exp_probs_b.bias", replace(t, shape=t.shape[-1:])
            return
        yield from super().layer_tensor(name, t)


FAMILIES = {
    "Ernie4_5ForCausalLM": Ernie4_5,
    "Ernie4_5_ForCausalLM": Ernie4_5,
    "Ernie4_5_MoeForCausalLM": Ernie4_5MoE,
}
