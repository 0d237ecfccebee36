"""Cases of make_convert.py with state spaces."""

from __future__ import annotations

from convert_case import SMALL, Case
from convert_changes import older_kinds, pattern

_SMALLER = SMALL | {"intermediate_size": 32}
_MAMBA = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
}
_GRANITE = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.7,
    "attention_multiplier": 0.25,
    "logits_scaling": 2.5,
    "shared_intermediate_size": 24,
}
_GRANITE_EXPERTS = _GRANITE | {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 16}
_NEMOTRON = {
    "head_dim": 8,
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    "ssm_state_size": 8,
    "n_groups": 2,
    "conv_kernel": 4,
    "chunk_size": 8,
    "time_step_min": 1e-9,
}
_NEMOTRON_EXPERTS = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "moe_shared_expert_intermediate_size": 24,
    "n_shared_experts": 1,
    "routed_scaling_factor": 1.5,
}

HYBRID: dict[str, Case] = {
    "mamba2": Case(
        "Mamba2",
        {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 4, "head_dim": 16}
        | {"state_size": 8, "n_groups": 1, "chunk_size": 8, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    ),
    "granitehybrid": Case(
        "GraniteMoeHybrid",
        _SMALLER | _MAMBA | _GRANITE | {"num_local_experts": 0, "layer_types": ["mamba", "attention"]},
        after=older_kinds,
    ),
    "granitehybrid-moe": Case(
        "GraniteMoeHybrid",
        _SMALLER | _MAMBA | _GRANITE_EXPERTS | {"layer_types": ["attention", "mamba"]},
        after=older_kinds,
    ),
    "granitehybrid-attention": Case(
        "GraniteMoeHybrid",
        _SMALLER
        | _MAMBA
        | _GRANITE
        | {"num_local_experts": 0, "layer_types": ["attention"] * 2, "position_embedding_type": "rope"},
        after=older_kinds,
    ),
    "falcon-h1": Case(
        "FalconH1",
        _SMALLER
        | _MAMBA
        | {
            "head_dim": 8,
            "mamba_d_ssm": 64,
            "mamba_n_groups": 2,
            "mamba_rms_norm": True,
            "mamba_norm_before_gate": False,
            "lm_head_multiplier": 0.4,
        }
        | {"attention_in_multiplier": 1.5, "attention_out_multiplier": 0.7, "key_multiplier": 0.6}
        | {"ssm_in_multiplier": 1.3, "ssm_out_multiplier": 0.8, "ssm_multipliers": [0.5, 0.9, 1.2, 0.7, 1.1]}
        | {"mlp_multipliers": [0.8, 1.4], "embedding_multiplier": 1.7},
    ),
    "falcon-h1-unnormed": Case("FalconH1", _SMALLER | _MAMBA | {"head_dim": 8, "mamba_d_ssm": 64}),
    "nemotron_h": Case(
        "NemotronH", _SMALLER | _NEMOTRON | {"layers_block_type": ["mamba", "mlp", "attention"]}, after=pattern
    ),
    "nemotron_h-moe": Case(
        "NemotronH",
        _SMALLER | _NEMOTRON | _NEMOTRON_EXPERTS | {"layers_block_type": ["mamba", "moe", "attention"]},
        after=pattern,
    ),
    "nemotron_h-latent": Case(
        "NemotronH",
        _SMALLER
        | _NEMOTRON
        | _NEMOTRON_EXPERTS
        | {"layers_block_type": ["moe", "mamba", "attention"], "moe_latent_size": 16},
    ),
}
