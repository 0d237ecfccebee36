"""Cases of make_convert.py: GPT-2, BLOOM, OLMo, and Llama 4."""

from __future__ import annotations

from typing import Any

from convert_case import LLAMA3, SMALL, VOCAB, Case

_GPT = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2}
_LLAMA4 = {
    "num_hidden_layers": 4,
    "head_dim": 8,
    "intermediate_size": 16,
    "intermediate_size_mlp": 48,
    "num_local_experts": 4,
    "num_experts_per_tok": 1,
    "interleave_moe_layer_step": 2,
    "attn_temperature_tuning": True,
}


def older_keys(tensors: dict[str, Any], config: dict[str, Any]) -> None:
    """What config.json of published models has beside."""
    config["n_ctx"] = config["n_positions"]


OLDER: dict[str, Case] = {
    "gpt2": Case("GPT2", _GPT | {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 64}, after=older_keys),
    "bloom": Case("Bloom", _GPT | {"hidden_size": 48, "n_head": 6, "n_layer": 2}),
    "olmo": Case("Olmo", SMALL),
    "olmo-clipped": Case("Olmo", SMALL | {"clip_qkv": 0.8, "num_key_value_heads": 4, "tie_word_embeddings": True}),
    "llama4": Case("Llama4Text", SMALL | _LLAMA4 | {"rope_parameters": LLAMA3}),
    "llama4-two": Case("Llama4Text", SMALL | _LLAMA4 | {"interleave_moe_layer_step": 1, "num_experts_per_tok": 2}),
}
