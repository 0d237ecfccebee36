"""GPT-2 and BLOOM: layer norms and biases, one matrix for queries, keys and values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pyllm_convert import lazy
from pyllm_convert.families.base import Family
from pyllm_convert.families.layer_norm import TANH_GELU, by_part
from pyllm_convert.lazy import Lazy


class _Transformer(Family):
    """Tensors are named `transformer.h.0.…`; positions are not rotated."""

    layer_norm = True
    tied = True
    names: ClassVar[Mapping[str, str]]
    """Settings of transformers by the names that other families have for them."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        named = {usual: config[own] for usual, own in self.names.items() if config.get(own) is not None}
        super().__init__({**named, **config})

    def metadata(self) -> dict[str, Any]:
        return {key: value for key, value in super().metadata().items() if not key.startswith("rope.")}

    def own_name(self, name: str) -> str | None:
        name = name.removeprefix("transformer.")
        return super().own_name(f"layers.{name[2:]}" if name.startswith("h.") else name)


class GPT2(_Transformer):
    """A learned row for each position. Matrices are stored with a column for each output."""

    arch = "gpt2"
    act = "gelu_new"
    other_acts = TANH_GELU
    names: ClassVar[Mapping[str, str]] = {
        "num_hidden_layers": "n_layer",
        "hidden_size": "n_embd",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
        "intermediate_size": "n_inner",
        "hidden_act": "activation_function",
    }
    top_names: ClassVar[Mapping[str, str]] = {
        "model.wte": "token_embd",
        "model.wpe": "position_embd",
        "model.ln_f": "output_norm",
        "lm_head": "output",
    }
    layer_names: ClassVar[dict[str, str]] = {
        "ln_1": "attn_norm",
        "attn.c_attn": "attn_qkv",
        "attn.c_proj": "attn_output",
        "ln_2": "ffn_norm",
        "mlp.c_fc": "ffn_up",
        "mlp.c_proj": "ffn_down",
    }

    @property
    def n_ff(self) -> int:
        return self.config.integer("intermediate_size", default=4 * self.n_embd)

    def metadata(self) -> dict[str, Any]:
        self.refuse("scale_attn_weights", True)
        self.refuse("scale_attn_by_inverse_layer_idx", False)
        self.refuse("add_cross_attention", False)
        return super().metadata()

    def transform(self, name: str, t: Lazy) -> Lazy:
        if ".ln_" in f".{name}":
            return lazy.require(t, 1)
        t = super().transform(name, t)
        return lazy.transposed(t) if name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")) else t


class Bloom(_Transformer):
    """Scores less by distance (ALiBi); embeddings are normed. Queries, keys and values are stored head by head."""

    arch = "bloom"
    defaults: ClassVar[Mapping[str, Any]] = {"max_position_embeddings": 2048}
    names: ClassVar[Mapping[str, str]] = {
        "num_hidden_layers": "n_layer",
        "hidden_size": "n_embed",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "seq_length",
    }
    top_names: ClassVar[Mapping[str, str]] = {
        "model.word_embeddings": "token_embd",
        "model.word_embeddings_layernorm": "token_embd_norm",
        "model.ln_f": "output_norm",
        "lm_head": "output",
    }
    layer_names: ClassVar[dict[str, str]] = {
        "input_layernorm": "attn_norm",
        "self_attention.query_key_value": "attn_qkv",
        "self_attention.dense": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.dense_h_to_4h": "ffn_up",
        "mlp.dense_4h_to_h": "ffn_down",
    }

    @property
    def n_ff(self) -> int:
        return 4 * self.n_embd

    def metadata(self) -> dict[str, Any]:
        self.refuse("apply_residual_connection_post_layernorm", False)
        return super().metadata()

    def transform(self, name: str, t: Lazy) -> Lazy:
        if name == "model.ln_f.weight":
            return lazy.require(t, 1)
        t = super().transform(name, t)
        return by_part(t, self.n_heads, self.head_dim) if ".query_key_value." in name else t


FAMILIES = {"GPT2LMHeadModel": GPT2, "BloomForCausalLM": Bloom}
