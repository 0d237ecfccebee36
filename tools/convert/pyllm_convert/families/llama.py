"""Llama and what shares its layout: Llama 1 to 4, Mistral, Mixtral, SmolLM 3."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from pyllm.errors import ModelError
from pyllm_convert import lazy
from pyllm_convert.families.base import Family
from pyllm_convert.lazy import Lazy

_EXPERTS_WITHOUT_QK_NORM = 128
"""Llama 4 Maverick's; engines know by them that it has no norms of queries and keys."""


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


class Llama4(Family):
    """Experts, with a shared one, on every few layers; rotated pairs are neighbours in the checkpoint too."""

    arch = "llama4"
    rope_tensors = True
    defaults: ClassVar[Mapping[str, Any]] = {
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "max_position_embeddings": 4096 * 32,
        "num_local_experts": 16,
        "num_experts_per_tok": 1,
    }
    layer_names: ClassVar[dict[str, str]] = Family.layer_names | {
        "feed_forward.gate_proj": "ffn_gate",
        "feed_forward.up_proj": "ffn_up",
        "feed_forward.down_proj": "ffn_down",
        "feed_forward.router": "ffn_gate_inp",
        "feed_forward.shared_expert.gate_proj": "ffn_gate_shexp",
        "feed_forward.shared_expert.up_proj": "ffn_up_shexp",
        "feed_forward.shared_expert.down_proj": "ffn_down_shexp",
    }

    @property
    def n_ff(self) -> int:
        return self.config.integer("intermediate_size_mlp", default=16384)

    def metadata(self) -> dict[str, Any]:
        """Chunks, factors of queries and the norms of queries and keys are no part of files: engines know them."""
        c = self.config
        for key, value in (("attention_chunk_size", 8192), ("floor_scale", 8192), ("attn_scale", 0.1)):
            self.refuse(key, value)
        self.refuse("attn_temperature_tuning", True, 4)
        self.refuse("attention_bias", False)
        self.refuse("use_qk_norm", self.n_experts != _EXPERTS_WITHOUT_QK_NORM)
        kept = c.items("no_rope_layers", self.n_layers)
        expected = [int((il + 1) % 4 != 0) for il in range(self.n_layers)]
        if kept not in (None, [], expected):
            raise ModelError("llama4 files mean that every fourth layer goes without positions; config.json says else")
        step = c.integer("interleave_moe_layer_step", default=1)
        layers = c.get("moe_layers")
        if layers not in (None, [il for il in range(self.n_layers) if (il + 1) % step == 0]):
            raise ModelError(f"llama4 files have experts on every {step}-th layer; config.json's moe_layers are others")
        return super().metadata() | {
            "expert_feed_forward_length": c.integer("intermediate_size", default=8192),
            "interleave_moe_layer_step": step,
        }

    def layer_tensor(self, name: str, t: Lazy) -> Iterator[tuple[str, Lazy]]:
        if name == "feed_forward.experts.down_proj":
            yield "ffn_down_exps.weight", lazy.transposed(lazy.require(t, 3))
        elif name == "feed_forward.experts.gate_up_proj":
            both = lazy.transposed(lazy.require(t, 3))
            half = both.shape[1] // 2
            yield "ffn_gate_exps.weight", lazy.slice_rows(both, 0, half)
            yield "ffn_up_exps.weight", lazy.slice_rows(both, half, 2 * half)
        else:
            yield from super().layer_tensor(name, t)


FAMILIES = {
    "LlamaForCausalLM": Llama,
    "Llama4ForCausalLM": Llama4,
    "Llama4ForConditionalGeneration": Llama4,
    "MistralForCausalLM": Mistral,
    "Mistral3ForConditionalGeneration": Mistral,
    "MixtralForCausalLM": Mixtral,
    "SmolLM3ForCausalLM": SmolLM3,
}
