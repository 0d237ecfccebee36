"""Nemotron-H and Nemotron 3: each layer is Mamba 2, attention, a network or a mixture of experts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from pyllm.errors import ModelError
from pyllm_convert import lazy
from pyllm_convert.families.base import Family
from pyllm_convert.families.mamba import KINDS, HasMamba2
from pyllm_convert.lazy import Lazy

_KINDS = KINDS | {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
"""Kinds of layers, as letters of a pattern and as words."""
_SIGMOID = 2
"""Number of a way to weight experts (`expert_gating_func`)."""


class NemotronH(HasMamba2):
    """Layers of one part; attention has no positions."""

    arch = "nemotron_h"
    act = "relu2"
    mixer = "mixer."
    defaults: ClassVar[Mapping[str, Any]] = {
        "num_hidden_layers": 0,
        "max_position_embeddings": 4096,
        "layer_norm_epsilon": 1e-5,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "mamba_num_heads": 128,
        "mamba_head_dim": 64,
        "ssm_state_size": 128,
        "n_groups": 8,
        "conv_kernel": 4,
    }
    sizes: ClassVar[Mapping[str, str]] = {
        "ssm.conv_kernel": "conv_kernel",
        "ssm.state_size": "ssm_state_size",
        "ssm.time_step_rank": "mamba_num_heads",
        "ssm.group_count": "n_groups",
    }
    top_names: ClassVar[Mapping[str, str]] = {
        "model.embeddings": "token_embd",
        "model.embed_tokens": "token_embd",
        "model.norm_f": "output_norm",
        "lm_head": "output",
    }
    layer_names: ClassVar[dict[str, str]] = {
        "norm": "attn_norm",
        "mixer.q_proj": "attn_q",
        "mixer.k_proj": "attn_k",
        "mixer.v_proj": "attn_v",
        "mixer.o_proj": "attn_output",
        "mixer.up_proj": "ffn_up",
        "mixer.down_proj": "ffn_down",
        "mixer.gate": "ffn_gate_inp",
        "mixer.shared_experts.up_proj": "ffn_up_shexp",
        "mixer.shared_experts.down_proj": "ffn_down_shexp",
        "mixer.fc1_latent_proj": "ffn_latent_down",
        "mixer.fc2_latent_proj": "ffn_latent_up",
    }

    @classmethod
    def of(cls, config: Mapping[str, Any], folder: Path | None = None) -> type[Family]:
        return NemotronHMoE if "moe" in _kinds(config) else cls

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.kinds = _kinds(config)
        if not self.kinds or (unknown := set(self.kinds) - set(_KINDS.values())):
            said = ", ".join(sorted(unknown)) if self.kinds else "not named"
            raise ModelError(f"layers of config.json are {said}; known are {', '.join(sorted({*_KINDS.values()}))}")
        renamed = {"hidden_act": config.get("mlp_hidden_act"), "head_dim": config.get("attention_head_dim")}
        known = {key: value for key, value in renamed.items() if value is not None}
        super().__init__(known | dict(config) | {"num_hidden_layers": len(self.kinds)})
        if "moe" not in self.kinds:
            self.n_experts = 0  # config.json may count some all the same
        for key in ("use_bias", "mlp_bias", "mamba_proj_bias"):
            self.refuse(key, False)

    @property
    def width(self) -> int:
        return self.config.integer("mamba_num_heads") * self.config.integer("mamba_head_dim")

    def own_name(self, name: str) -> str | None:
        if name.startswith("mtp."):
            return None  # layers that predict further tokens
        own = super().own_name(name.removeprefix("model.").removeprefix("backbone."))
        return own and own.replace(".mixer.experts.", ".mlp.experts.")

    def metadata(self) -> dict[str, Any]:
        return (
            super().metadata()
            | self.states()
            | {
                "rope.scaling.finetuned": False,
                "attention.head_count_kv": [self.n_kv_heads if kind == "attention" else 0 for kind in self.kinds],
                "feed_forward_length": [self.n_ff if kind in ("mlp", "moe") else 0 for kind in self.kinds],
            }
        )

    @property
    def n_ff(self) -> int:
        """Columns of a layer's network, or of an expert."""
        return self.config.integer("intermediate_size")

    def epsilon(self) -> dict[str, Any]:
        eps = self.config.number("layer_norm_epsilon", "norm_eps")
        return {"attention.layer_norm_epsilon": eps, "attention.layer_norm_rms_epsilon": eps}

    def transform(self, name: str, t: Lazy) -> Lazy:
        """Rows of queries and keys are in the order of llama files, though nothing rotates them."""
        if name.startswith(("mixer.q_proj.", "mixer.k_proj.")):
            return lazy.permuted_heads(lazy.require(t, 2), self.n_heads if "q_proj" in name else self.n_kv_heads)
        return super().transform(name, t)

    def layer_tensor(self, name: str, t: Lazy) -> Iterator[tuple[str, Lazy]]:
        if name.rpartition(".")[0] in self.layer_names:
            yield from Family.layer_tensor(self, name, t)
        else:
            yield from super().layer_tensor(name, t)


class NemotronHMoE(NemotronH):
    """Experts without gates, in a space of their own in some models, and one that all tokens use."""

    arch = "nemotron_h_moe"

    def metadata(self) -> dict[str, Any]:
        c = self.config
        self.refuse("n_group", 1)
        if "mlp" in self.kinds:
            raise ModelError(f"layers of config.json are both networks and experts; {self.arch} files have no place")
        latent = c.integer("moe_latent_size", default=0, least=0)
        return super().metadata() | {
            "expert_feed_forward_length": self.n_ff,
            "expert_shared_feed_forward_length": c.integer("moe_shared_expert_intermediate_size"),
            "expert_shared_count": c.integer("n_shared_experts", default=1),
            "expert_gating_func": _SIGMOID,
            "expert_weights_norm": c.flag("norm_topk_prob", default=True),
            "expert_weights_scale": c.number("routed_scaling_factor", default=1.0),
            "expert_group_count": 1,
            "expert_group_used_count": 1,
            **({"moe_latent_size": latent} if latent else {}),
        }

    @property
    def n_ff(self) -> int:
        return self.config.integer("moe_intermediate_size")

    def layer_tensor(self, name: str, t: Lazy) -> Iterator[tuple[str, Lazy]]:
        match name:
            case "mixer.gate.e_score_correction_bias":
                yield "exp_probs_b.bias", lazy.require(t, 1)
            case "mlp.experts.up_proj" | "mlp.experts.down_proj":
                yield f"ffn_{name.split('.')[2].removesuffix('_proj')}_exps.weight", lazy.require(t, 3)
            case _:
                yield from super().layer_tensor(name, t)


def _kinds(config: Mapping[str, Any]) -> list[str]:
    """What each layer is; nothing where config.json does not say."""
    pattern = config.get("hybrid_override_pattern") or config.get("layers_block_type") or config.get("layer_types")
    return [_KINDS.get(str(kind), str(kind)) for kind in pattern] if isinstance(pattern, str | list) else []


FAMILIES = {"NemotronHForCausalLM": NemotronH}
