"""What the cases of make_convert.py are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

VOCAB = 96
N_TOKENS = 24
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
HALF = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 16,
    "short_factor": [1.0, 1.1, 1.3, 1.7],
    "long_factor": [1.0, 2.0, 3.5, 5.0],
}


@dataclass(frozen=True)
class Case:
    """One folder: the class of transformers' models, its settings, and how weights are stored."""

    model: str
    config: Mapping[str, Any]
    dtype: str = "bfloat16"
    shards: bool = False
    n_tokens: int = N_TOKENS
    after: Callable[[dict[str, Any], dict[str, Any]], None] | None = None
    """Changes tensors and config.json before they are written."""
    head: str = "ForCausalLM"
    """What follows in the name of the class of transformers' models."""
    shapes: Mapping[str, tuple[int, ...]] | None = None
    """Tensors of a model that transformers does not have, so that there are no logits."""
    foreign: bool = False
    """transformers has no such model: its logits are those of the tensors and settings before that change."""
