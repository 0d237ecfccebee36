"""MiniMax M2: experts chosen by sigmoids and a bias; queries and keys are normed over all heads, rotated in part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from pyllm_convert import lazy
from pyllm_convert.config import Config
from pyllm_convert.families.base import Family
from pyllm_convert.lazy import Lazy

_SIGMOID = 2
"""Value of expert_gating_func."""


class MiniMaxM2(Family):
    """Every layer's feed-forward is a mixture of experts, whose weights sum to one."""

    arch = "minimax-m2"
    rotates_in_part = True
    defaults: ClassVar[Mapping[str, Any]] = {
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 196608,
        "num_experts_per_tok": 8,
        "num_local_experts": 256,
        "intermediate_size": 1536,
        "rope_theta": 5000000.0,
    }

    def __init__(self, config: Mapping[str, Any]) -> None:
        c = Config(config, self.defaults)
        rotated = c.optional("rotary_dim")
        share = rotated / c.integer("head_dim") if rotated is not None else None
        super().__init__({"partial_rotary_factor": share, **config})

    def metadata(self) -> dict[str, Any]:
        self.refuse("scoring_func", "sigmoid")
        self.refuse("norm_topk_prob", True)
        self.refuse("use_qk_norm", True)
        self.refuse("qk_norm_type", "per_layer")
        self.refuse("shared_intermediate_size", 0)
        for part in ("full_attention", "linear_attention", "mlp"):
            self.refuse(f"layernorm_{part}_alpha", 1)
            self.refuse(f"layernorm_{part}_beta", 1)
        self.refuse("attn_type_list", [1] * self.n_layers)
        n_ff = self.config.integer("intermediate_size")
        return super().metadata() | {"expert_feed_forward_length": n_ff, "expert_gating_func": _SIGMOID}

    def layer_tensor(self, name: str, t: Lazy) -> Iterator[tuple[str, Lazy]]:
        if name in ("block_sparse_moe.e_score_correction_bias", "mlp.e_score_correction_bias"):
            yield "exp_probs_b.bias", lazy.require(t, 1)
            return
        yield from super().layer_tensor(name, t)


FAMILIES = {"MiniMaxM2ForCausalLM": MiniMaxM2}
