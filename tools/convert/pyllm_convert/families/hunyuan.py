"""Hunyuan 1, dense and mixtures of experts: queries and keys are normed after their rotation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pyllm.errors import ModelError
from pyllm_convert.config import Config, as_number
from pyllm_convert.families.base import Family

_CONTEXT_IN_CONFIG, _CONTEXT = 32768, 262144
"""Positions that published settings state beside `alpha`, and those that their makers name and llama.cpp writes."""


class Hunyuan(Family):
    """Dense. A stretched context (`alpha`) is a larger base of the rotation."""

    arch = "hunyuan-dense"
    defaults: ClassVar[Mapping[str, Any]] = {"max_position_embeddings": 2048, "rms_norm_eps": 1e-5}
    layer_names: ClassVar[dict[str, str]] = Family.layer_names | {
        "self_attn.query_layernorm": "attn_q_norm",
        "self_attn.key_layernorm": "attn_k_norm",
    }

    def __init__(self, config: Mapping[str, Any]) -> None:
        rope = Config(config).table("rope_parameters", "rope_scaling")
        alpha = Config(rope).optional("alpha") if "dynamic" in (rope.get("rope_type"), rope.get("type")) else None
        if alpha:
            config = {**config, "rope_parameters": {**rope, "rope_type": "default"}}
        super().__init__(config)
        self.is_stretched = bool(alpha)
        if alpha:
            self.rope.keys["rope.freq_base"] = self._stretched(self.rope.keys["rope.freq_base"], alpha)

    def _stretched(self, base: float, alpha: float) -> float:
        if alpha < 0 or self.head_dim < 4:
            raise ModelError(f"RoPE scaling by alpha {alpha:g} makes no sense for heads of {self.head_dim} columns")
        return as_number(base * alpha ** (self.head_dim / (self.head_dim - 2)), "alpha")

    def metadata(self) -> dict[str, Any]:
        for key, value in (("use_qk_norm", True), ("use_rotary_pos_emb", True), ("use_cla", False), ("use_mla", False)):
            self.refuse(key, value)
        self.refuse("norm_type", "rms", "hf_rms")
        self.refuse("attention_head_dim", self.head_dim)
        self.refuse_experts()
        keys = super().metadata()
        if self.is_stretched and keys["context_length"] == _CONTEXT_IN_CONFIG:
            keys["context_length"] = _CONTEXT
        return keys

    def refuse_experts(self) -> None:
        """Raises ModelError where experts are configured in a way that files have no place for."""
        if self.n_experts > 1:
            raise ModelError(f"config.json's num_experts is {self.n_experts}, but the architecture is a dense one")
        self.n_experts = 0


class HunyuanMoE(Hunyuan):
    """Every layer has experts, whose weights sum to one, and one more that all tokens use."""

    arch = "hunyuan-moe"
    layer_names: ClassVar[dict[str, str]] = Hunyuan.layer_names | {
        "mlp.gate.wg": "ffn_gate_inp",
        "mlp.shared_mlp.gate_proj": "ffn_gate_shexp",
        "mlp.shared_mlp.up_proj": "ffn_up_shexp",
        "mlp.shared_mlp.down_proj": "ffn_down_shexp",
    }

    def __init__(self, config: Mapping[str, Any]) -> None:
        n_experts = _of_all_layers(config, "num_experts")
        super().__init__(
            {**config, "num_experts": n_experts, "num_experts_per_tok": _of_all_layers(config, "moe_topk")}
        )

    def metadata(self) -> dict[str, Any]:
        n_ff = self.config.integer("intermediate_size")
        return super().metadata() | {
            "expert_feed_forward_length": n_ff,
            "expert_shared_feed_forward_length": n_ff,
            "expert_shared_count": 1,
        }

    def refuse_experts(self) -> None:
        for key, value in (
            ("moe_intermediate_size", self.config.integer("intermediate_size")),
            ("num_shared_expert", 1),
        ):
            found = _of_all_layers(self.config.values, key)
            if found not in (None, value):
                raise ModelError(f"config.json's {key} is {found!r}; {self.arch} files mean {value}")
        for key, allowed in (("use_mixed_mlp_moe", True), ("norm_topk_prob", True), ("group_limited_greedy", False)):
            self.refuse(key, allowed)
        self.refuse("moe_layer_num_skipped", 0)
        self.refuse("routed_scaling_factor", 1)


def _of_all_layers(config: Mapping[str, Any], key: str) -> Any:
    """A setting that may be a list with a value for each layer. Raises ModelError where these differ."""
    value = config.get(key)
    if not isinstance(value, list):
        return value
    if not value or any(v != value[0] for v in value):
        raise ModelError(f"config.json's {key} is {value!r}; layers must have the same")
    return value[0]


FAMILIES = {"HunYuanDenseV1ForCausalLM": Hunyuan, "HunYuanMoEV1ForCausalLM": HunyuanMoE}
