"""Families with layer norms and biases: GPT-NeoX (Pythia), Phi 1 and 2, StableLM, StarCoder 2."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from pyllm.errors import ModelError
from pyllm_convert import lazy
from pyllm_convert.families.base import Family
from pyllm_convert.lazy import Lazy

TANH_GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")
_HEAD_NORM = re.compile(r"(.*\.self_attn\.[qk]_layernorm)\.norms\.(\d{1,5})\.weight")


def by_part(t: Lazy, n_heads: int, head_dim: int) -> Lazy:
    """Rows of queries, keys and values head by head → all queries, all keys, all values."""
    shape = (n_heads, 3, head_dim)
    rows = np.arange(np.prod(shape), dtype=np.int64)
    if t.shape[0] != len(rows):
        raise ModelError(f"tensor {t.name} has {t.shape[0]} rows; {n_heads} heads need {len(rows)}")
    return lazy.reordered(t, rows.reshape(shape).swapaxes(0, 1).reshape(-1))


class GPTNeoX(Family):
    """Queries, keys and values in one matrix, head by head; attention and feed-forward beside each other.

    Engines compute the exact GELU of published models by its tanh form, which differs by an NMSE of about 1e-9.
    """

    arch = "gptneox"
    layer_norm = True
    rotates_in_part = True
    act = "gelu"
    other_acts = TANH_GELU
    defaults: ClassVar[Mapping[str, Any]] = {"max_position_embeddings": 2048, "partial_rotary_factor": 0.25}
    top_names: ClassVar[Mapping[str, str]] = {
        "model.embed_in": "token_embd",
        "model.final_layer_norm": "output_norm",
        "lm_head": "output",
    }
    layer_names: ClassVar[dict[str, str]] = {
        "input_layernorm": "attn_norm",
        "attention.query_key_value": "attn_qkv",
        "attention.dense": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.dense_h_to_4h": "ffn_up",
        "mlp.dense_4h_to_h": "ffn_down",
    }

    def __init__(self, config: Mapping[str, Any]) -> None:
        named = {"partial_rotary_factor": config.get("rotary_pct"), "rope_theta": config.get("rotary_emb_base")}
        super().__init__({**named, **config, "num_key_value_heads": None})

    def metadata(self) -> dict[str, Any]:
        parallel = self.config.flag("use_parallel_residual", default=True)
        return super().metadata() | {"use_parallel_residual": parallel}

    def own_name(self, name: str) -> str | None:
        return super().own_name(f"lm_head.{name[10:]}" if name.startswith("embed_out.") else name)

    def transform(self, name: str, t: Lazy) -> Lazy:
        t = super().transform(name, t)
        return by_part(t, self.n_heads, self.head_dim) if name.startswith("attention.query_key_value.") else t


class Phi2(Family):
    """One norm for attention and feed-forward beside each other."""

    arch = "phi2"
    layer_norm = True
    rotates_in_part = True
    act = "gelu_new"
    other_acts = TANH_GELU
    defaults: ClassVar[Mapping[str, Any]] = {"max_position_embeddings": 2048, "partial_rotary_factor": 0.5}
    top_names: ClassVar[Mapping[str, str]] = {
        "model.embed_tokens": "token_embd",
        "model.final_layernorm": "output_norm",
        "lm_head": "output",
    }
    layer_names: ClassVar[dict[str, str]] = Family.layer_names | {
        "self_attn.dense": "attn_output",
        "mlp.fc1": "ffn_up",
        "mlp.fc2": "ffn_down",
    }

    def metadata(self) -> dict[str, Any]:
        self.refuse("qk_layernorm", False)
        return super().metadata()


class StableLM(Family):
    """Layers with one norm run attention and feed-forward beside each other; each head may have a norm of its own."""

    arch = "stablelm"
    layer_norm = True
    rotates_in_part = True
    defaults: ClassVar[Mapping[str, Any]] = {"max_position_embeddings": 4096, "partial_rotary_factor": 0.25}
    layer_names: ClassVar[dict[str, str]] = Family.layer_names | {
        "self_attn.q_layernorm": "attn_q_norm",
        "self_attn.k_layernorm": "attn_k_norm",
    }

    @property
    def is_parallel(self) -> bool:
        """Attention and feed-forward read the same."""
        return self.config.flag("use_parallel_residual")

    def metadata(self) -> dict[str, Any]:
        return super().metadata() | {"use_parallel_residual": self.is_parallel}

    def tensors(self, stored: Mapping[str, Lazy]) -> dict[str, Lazy]:
        whole: dict[str, Lazy] = {}
        heads: dict[str, dict[int, Lazy]] = {}
        for name, t in stored.items():
            if (norm := _HEAD_NORM.fullmatch(name)) is not None:
                heads.setdefault(norm[1], {})[int(norm[2])] = lazy.require(t, 1)
            elif not (self.is_parallel and ".post_attention_layernorm." in name):
                whole[name] = t
        for name, norms in heads.items():
            n = self.n_heads if name.endswith("q_layernorm") else self.n_kv_heads
            if sorted(norms) != list(range(n)):
                raise ModelError(f"{name} has the norms of {len(norms)} heads; config.json counts {n}")
            whole[f"{name}.weight"] = lazy.stack([norms[i] for i in range(n)])
        placed = super().tensors(whole)
        for il in range(0 if self.is_parallel else self.n_layers):
            if f"blk.{il}.ffn_norm.weight" not in placed:
                raise ModelError(f"layer {il} has no post_attention_layernorm, and config.json says that it needs one")
        return placed

    def transform(self, name: str, t: Lazy) -> Lazy:
        return t if "_layernorm.weight" in name and len(t.shape) == 2 else super().transform(name, t)


class Starcoder2(Family):
    """Biases everywhere; windows on all layers."""

    arch = "starcoder2"
    layer_norm = True
    act = "gelu_pytorch_tanh"
    other_acts = TANH_GELU
    tied = True
    defaults: ClassVar[Mapping[str, Any]] = {"num_key_value_heads": 2, "max_position_embeddings": 4096}
    layer_names: ClassVar[dict[str, str]] = Family.layer_names | {"mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"}

    def windows(self) -> dict[str, Any]:
        """One for all layers."""
        if self.config.get("sliding_window") is None:
            return {}
        n = self.config.integer("sliding_window", most=1 << 31)
        self.notes.append(
            f"attention sees {n} positions; llama.cpp ignores that in {self.arch} files and lets it see all"
        )
        return {"attention.sliding_window": n}


FAMILIES = {
    "GPTNeoXForCausalLM": GPTNeoX,
    "PhiForCausalLM": Phi2,
    "StableLmForCausalLM": StableLM,
    "Starcoder2ForCausalLM": Starcoder2,
}
