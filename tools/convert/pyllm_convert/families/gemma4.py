"""Gemma 4: heads of full layers are wider, the last layers share keys and values; some models have embeddings of each
layer's own, others experts beside a plain feed-forward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from pyllm.errors import ModelError
from pyllm_convert import lazy
from pyllm_convert.config import Config
from pyllm_convert.families.base import Family
from pyllm_convert.lazy import Lazy

_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0},
}
_OWN = {
    "layer_scalar": ("layer_output_scale.weight", 1),
    "router.scale": ("ffn_gate_inp.scale", 1),
    "router.per_expert_scale": ("ffn_down_exps.scale", 1),
    "experts.gate_up_proj": ("ffn_gate_up_exps.weight", 3),
    "experts.down_proj": ("ffn_down_exps.weight", 3),
}
"""Tensors of a layer whose names do not end in .weight, and their axes."""


class Gemma4(Family):
    """Norms multiply by their weight as it is. `head_dim` is that of layers with a window."""

    arch = "gemma4"
    defaults: ClassVar[Mapping[str, Any]] = {
        "num_hidden_layers": 30,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262144,
        "max_position_embeddings": 131072,
        "sliding_window": 512,
        "hidden_size_per_layer_input": 256,
        "rope_parameters": _ROPE,
    }
    act = "gelu_pytorch_tanh"
    rope_tensors = True
    window_period = 6
    tied = True
    top_names: ClassVar[Mapping[str, str]] = {
        **Family.top_names,
        "model.embed_tokens_per_layer": "per_layer_token_embd",
        "model.per_layer_model_projection": "per_layer_model_proj",
        "model.per_layer_projection_norm": "per_layer_proj_norm",
    }
    layer_names: ClassVar[dict[str, str]] = Family.layer_names | {
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
        "post_feedforward_layernorm_1": "post_ffw_norm_1",
        "post_feedforward_layernorm_2": "post_ffw_norm_2",
        "pre_feedforward_layernorm_2": "pre_ffw_norm_2",
        "router.proj": "ffn_gate_inp",
        "per_layer_input_gate": "inp_gate",
        "per_layer_projection": "proj",
        "post_per_layer_input_norm": "post_norm",
    }

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        if not self.config.flag("enable_moe_block"):
            self.n_experts = 0
        if "rope.scaling.type" in self.rope.keys:
            raise ModelError("RoPE of gemma4 files is proportional or not scaled; config.json's rope_type is another")
        self.rope.tensors.setdefault("rope_freqs.weight", np.ones(self.n_rot // 2, np.float32))
        self.n_shared = self.config.integer("num_kv_shared_layers", default=0, least=0, most=self.n_layers - 1)

    @property
    def n_rot(self) -> int:
        """Columns of a full layer's head."""
        return self.of_full_layers("head_dim", "global_head_dim", 512)

    def of_full_layers(self, key: str, name: str, default: int) -> int:
        """A count that layers without a window have of their own: under `name`, or layer by layer under `key`."""
        c = self.config
        full = {str(il) for il, windowed in enumerate(self.window_pattern()) if not windowed}
        found: set[int] = set()
        for il, changes in c.table("per_layer_config").items():
            if not isinstance(changes, dict) or not set(changes) <= {"head_dim", "num_key_value_heads"}:
                raise ModelError(f"config.json's per_layer_config has {changes!r}; gemma4 files have a place for heads")
            if key in changes and il in full:
                found.add(Config(changes).integer(key))
            elif key in changes and changes[key] != c.get(key):
                raise ModelError(f"config.json's per_layer_config changes {key} of layer {il}, which has a window")
        if len(found) > 1:
            raise ModelError(f"config.json's per_layer_config gives layers without a window {key} of {sorted(found)}")
        return found.pop() if found else c.integer(name, default=default)

    def window_pattern(self) -> list[bool]:
        """The last layer has none, whatever config.json says."""
        return [*super().window_pattern()[:-1], False]

    def windows(self) -> dict[str, Any]:
        return {
            "attention.sliding_window": self.config.integer("sliding_window", most=1 << 31),
            "attention.sliding_window_pattern": self.window_pattern(),
        }

    def metadata(self) -> dict[str, Any]:
        c = self.config
        self.refuse("use_bidirectional_attention", "vision")
        self.refuse("attention_bias", False)
        keys = super().metadata() | {
            "attention.key_length": self.n_rot,
            "attention.value_length": self.n_rot,
            "attention.key_length_swa": self.head_dim,
            "attention.value_length_swa": self.head_dim,
            "rope.dimension_count_swa": self.head_dim,
            "attention.shared_kv_layers": self.n_shared,
            "embedding_length_per_layer_input": c.integer("hidden_size_per_layer_input", default=0, least=0),
        }
        if self.n_experts:
            keys["expert_feed_forward_length"] = c.integer("moe_intermediate_size")
        if c.optional("final_logit_softcapping"):
            keys["final_logit_softcapping"] = c.number("final_logit_softcapping")
        return keys | self._by_layer()

    def _by_layer(self) -> dict[str, Any]:
        """Counts that differ by layer."""
        c, keys = self.config, {}
        name = "num_global_key_value_heads" if c.flag("attention_k_eq_v") else "num_key_value_heads"
        n_full = self.of_full_layers("num_key_value_heads", name, self.n_kv_heads)
        if n_full != self.n_kv_heads:
            keys["attention.head_count_kv"] = [self.n_kv_heads if w else n_full for w in self.window_pattern()]
        if c.flag("use_double_wide_mlp") and self.n_shared:
            n_ff, n_own = c.integer("intermediate_size"), self.n_layers - self.n_shared
            keys["feed_forward_length"] = [n_ff * (1 + (il >= n_own)) for il in range(self.n_layers)]
        return keys

    def layer_tensor(self, name: str, t: Lazy) -> Iterator[tuple[str, Lazy]]:
        if name in _OWN:
            new, n_axes = _OWN[name]
            yield new, lazy.require(t, n_axes)
            return
        yield from super().layer_tensor(name, t)


class Gemma4Unified(Gemma4):
    """The language model of the models that see and hear without towers: neither experts nor embeddings by layer."""

    defaults: ClassVar[Mapping[str, Any]] = {
        **Gemma4.defaults,
        "max_position_embeddings": 262144,
        "sliding_window": 1024,
        "hidden_size_per_layer_input": 0,
    }


FAMILIES = {
    "Gemma4ForCausalLM": Gemma4,
    "Gemma4ForConditionalGeneration": Gemma4,
    "Gemma4UnifiedForConditionalGeneration": Gemma4Unified,
}
