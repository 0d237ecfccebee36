"""Further cases of make_convert.py, by family."""

from __future__ import annotations

from convert_case import EXPERTS, LLAMA3, SMALL, Case
from convert_changes import next_layer, next_layer_beside, older_name, whole_rotation

SMALLER = SMALL | {"intermediate_size": 32}
FOUR_LAYERS = {"num_hidden_layers": 4, "intermediate_size": 16}
GRANITE = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.7,
    "attention_multiplier": 0.25,
    "logits_scaling": 2.5,
    "max_position_embeddings": 64,
}
ERNIE_EXPERTS = {
    "moe_num_experts": 4,
    "moe_k": 2,
    "moe_intermediate_size": 8,
    "moe_num_shared_experts": 2,
    "moe_layer_interval": 2,
}
GLM_EXPERTS = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "routed_scaling_factor": 1.5,
    "head_dim": 8,
}

GEMMA4 = {
    "head_dim": 8,
    "global_head_dim": 16,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"],
    "hidden_size_per_layer_input": 0,
}

DELTA = {
    "head_dim": 16,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_conv_kernel_dim": 4,
    "layer_types": ["linear_attention", "full_attention"],
    "num_hidden_layers": 2,
}
DELTA_EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "shared_expert_intermediate_size": 16,
}

FURTHER: dict[str, Case] = {
    "granite": Case("Granite", SMALLER | GRANITE),
    "granite-bias-tied": Case(
        "Granite", SMALLER | GRANITE | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}
    ),
    "granitemoe": Case("GraniteMoe", SMALLER | GRANITE | EXPERTS | {"intermediate_size": 16}),
    "granitemoe-shared": Case(
        "GraniteMoeShared", SMALLER | GRANITE | EXPERTS | {"intermediate_size": 16, "shared_intermediate_size": 24}
    ),
    "seed-oss": Case("SeedOss", SMALLER | {"head_dim": 16}),
    "command-r": Case("Cohere", SMALLER | {"logit_scale": 0.25}),
    "command-r-norms": Case("Cohere", SMALLER | {"logit_scale": 0.25, "use_qk_norm": True}),
    "cohere2": Case("Cohere2", SMALL | FOUR_LAYERS | {"sliding_window": 8}, after=whole_rotation),
    "cohere2-pattern": Case(
        "Cohere2",
        SMALLER | {"sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"]},
        after=whole_rotation,
    ),
    "ernie4_5": Case("Ernie4_5", SMALLER | {"head_dim": 16}),
    "ernie4_5-untied": Case("Ernie4_5", SMALLER | {"head_dim": 8, "tie_word_embeddings": False}, after=older_name),
    "ernie4_5-moe": Case("Ernie4_5_Moe", SMALLER | ERNIE_EXPERTS | {"num_hidden_layers": 4}),
    "exaone4": Case(
        "Exaone4",
        SMALLER | {"sliding_window": None, "layer_types": ["full_attention"] * 2, "rope_parameters": LLAMA3},
    ),
    "exaone4-windows": Case("Exaone4", SMALL | FOUR_LAYERS | {"sliding_window": 8}),
    "glm4": Case("Glm4", SMALLER | {"head_dim": 16}),
    "glm4moe": Case(
        "Glm4Moe",
        SMALLER | GLM_EXPERTS | {"use_qk_norm": True, "attention_bias": True, "num_mtp_layers": 0},
    ),
    "glm4moe-next": Case(
        "Glm4Moe",
        SMALLER | GLM_EXPERTS | {"n_shared_experts": 2, "norm_topk_prob": False, "num_mtp_layers": 0},
        after=next_layer,
    ),
    "gemma4": Case(
        "Gemma4Text",
        SMALLER | GEMMA4 | {"attention_k_eq_v": True, "num_global_key_value_heads": 1, "final_logit_softcapping": 10.0},
    ),
    "gemma4-e": Case(
        "Gemma4Text",
        SMALLER
        | FOUR_LAYERS
        | GEMMA4
        | {
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "num_kv_shared_layers": 2,
            "use_double_wide_mlp": True,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 96,
        },
    ),
    "gemma4-moe": Case(
        "Gemma4Text",
        SMALLER
        | GEMMA4
        | {
            "attention_k_eq_v": True,
            "enable_moe_block": True,
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 8,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 20000.0},
                "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 50000.0},
            },
        },
    ),
    "qwen3_5": Case("Qwen3_5Text", SMALLER | DELTA, after=next_layer_beside),
    "qwen3_5-heads": Case(
        "Qwen3_5Text",
        SMALLER
        | DELTA
        | {"linear_num_key_heads": 3, "linear_num_value_heads": 3, "tie_word_embeddings": True}
        | {"num_hidden_layers": 4, "layer_types": None},
    ),
    "qwen3_5moe": Case("Qwen3_5MoeText", SMALLER | DELTA | DELTA_EXPERTS),
    "qwen3next": Case("Qwen3Next", SMALLER | DELTA | DELTA_EXPERTS),
    "lfm2": Case("Lfm2", SMALLER | {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8}),
    "lfm2moe": Case(
        "Lfm2Moe",
        SMALLER
        | {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1}
        | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8},
    ),
}
