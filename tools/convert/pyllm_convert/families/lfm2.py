"""LFM2, dense and with experts: gated short convolutions, and attention on some layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from pyllm.errors import ModelError
from pyllm_convert import lazy
from pyllm_convert.families.base import Family
from pyllm_convert.lazy import Lazy

_SIGMOID = 2
"""Value of expert_gating_func."""


class LFM2(Family):
    """`intermediate_size` may be that before it is made smaller and rounded."""

    arch = "lfm2"
    defaults: ClassVar[Mapping[str, Any]] = {
        "num_key_value_heads": 8,
        "max_position_embeddings": 128000,
        "norm_eps": 1e-5,
        "rope_theta": 1000000.0,
        "conv_L_cache": 3,
        "block_multiple_of": 256,
        "block_ffn_dim_multiplier": 1.0,
    }
    tied = True
    top_names: ClassVar[Mapping[str, str]] = {**Family.top_names, "model.embedding_norm": "token_embd_norm"}
    layer_names: ClassVar[dict[str, str]] = Family.layer_names | {
        "operator_norm": "attn_norm",
        "ffn_norm": "ffn_norm",
        "self_attn.q_layernorm": "attn_q_norm",
        "self_attn.k_layernorm": "attn_k_norm",
        "self_attn.out_proj": "attn_output",
        "conv.in_proj": "shortconv.in_proj",
        "conv.out_proj": "shortconv.out_proj",
        "mlp.w1": "ffn_gate",
        "mlp.w3": "ffn_up",
        "mlp.w2": "ffn_down",
    }

    @property
    def is_tied(self) -> bool:
        return self.config.flag("tie_embedding", "tie_word_embeddings", default=self.tied)

    @property
    def n_ff(self) -> int:
        c = self.config
        n = c.integer("block_ff_dim", "intermediate_size")
        if not c.flag("block_auto_adjust_ff_dim", default=True):
            return n
        n = int(c.number("block_ffn_dim_multiplier") * int(2 * n / 3))
        unit = c.integer("block_multiple_of")
        return -(-n // unit) * unit

    def epsilon(self) -> dict[str, Any]:
        return {"attention.layer_norm_rms_epsilon": self.config.number("norm_eps")}

    def metadata(self) -> dict[str, Any]:
        return super().metadata() | {
            "attention.head_count_kv": [self.n_kv_heads if flag else 0 for flag in self._attention()],
            "shortconv.l_cache": self.config.integer("conv_L_cache"),
        }

    def _attention(self) -> list[bool]:
        """Which layers have attention; all, where config.json does not say."""
        kinds = self.config.items("layer_types", self.n_layers)
        if kinds is None:
            indices = self.config.get("full_attn_idxs")
            return [indices is None or (isinstance(indices, list) and il in indices) for il in range(self.n_layers)]
        if any(kind not in ("conv", "full_attention") for kind in kinds):
            raise ModelError(f"config.json's layer_types holds {kinds!r}; known are conv and full_attention")
        return [kind == "full_attention" for kind in kinds]

    def own_name(self, name: str) -> str | None:
        own = super().own_name(name)
        return own and own.replace(".feed_forward.", ".mlp.")

    def layer_tensor(self, name: str, t: Lazy) -> Iterator[tuple[str, Lazy]]:
        if name == "conv.conv.weight":
            yield "shortconv.conv.weight", lazy.reshaped(t, (self.n_embd, self.config.integer("conv_L_cache")))
        elif name == "conv.conv.bias":
            yield "shortconv.conv.bias", lazy.require(t, 1)
        elif name == "mlp.expert_bias":
            yield "exp_probs_b.bias", lazy.require(t, 1)
        else:
            yield from super().layer_tensor(name, t)


class LFM2MoE(LFM2):
    """Experts after the first layers, chosen by sigmoids and a bias; their weights sum to one."""

    arch = "lfm2moe"
    defaults: ClassVar[Mapping[str, Any]] = {
        **LFM2.defaults,
        "num_dense_layers": 2,
        "num_experts": 32,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 1792,
        "block_auto_adjust_ff_dim": False,
        "routed_scaling_factor": 1.0,
    }

    def metadata(self) -> dict[str, Any]:
        c = self.config
        self.refuse("norm_topk_prob", True)
        return super().metadata() | {
            "expert_feed_forward_length": c.integer("moe_intermediate_size"),
            "leading_dense_block_count": c.integer("num_dense_layers", least=0),
            "expert_gating_func": _SIGMOID,
            "expert_weights_scale": c.number("routed_scaling_factor"),
        }


FAMILIES = {"Lfm2ForCausalLM": LFM2, "Lfm2MoeForCausalLM": LFM2MoE}
