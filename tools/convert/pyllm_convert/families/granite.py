"""Granite 3 and 4, dense and mixtures of experts: embeddings, parts, scores and logits are scaled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from pyllm.errors import ModelError
from pyllm_convert import lazy
from pyllm_convert.families.llama import Llama
from pyllm_convert.lazy import Lazy

_SCALES = {
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "attention_multiplier": "attention.scale",
    "logits_scaling": "logit_scale",
}


class Granite(Llama):
    """Llama with four factors, each 1 where config.json has none."""

    arch = "granite"
    defaults: ClassVar[Mapping[str, Any]] = {"max_position_embeddings": 2048}

    def metadata(self) -> dict[str, Any]:
        return super().metadata() | {key: self._factor(own) for own, key in _SCALES.items()}

    def _factor(self, key: str) -> float:
        value = self.config.number(key, default=1.0)
        if value <= 0:
            raise ModelError(f"config.json's {key} is {value:g}; it must be positive")
        return value


class GraniteMoE(Granite):
    """Experts on every layer, and beside them, in some models, one that all tokens use."""

    arch = "granitemoe"
    defaults: ClassVar[Mapping[str, Any]] = {
        "max_position_embeddings": 2048,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    }
    layer_names: ClassVar[dict[str, str]] = Granite.layer_names | {
        "block_sparse_moe.router": "ffn_gate_inp",
        "block_sparse_moe.router.layer": "ffn_gate_inp",
        "shared_mlp.output_linear": "ffn_down_shexp",
    }
    stacks: ClassVar[Mapping[str, str]] = {
        "block_sparse_moe.input_linear.weight": "mlp.experts.gate_up_proj",
        "block_sparse_moe.experts.gate_up_proj": "mlp.experts.gate_up_proj",
        "block_sparse_moe.output_linear.weight": "mlp.experts.down_proj",
        "block_sparse_moe.experts.down_proj": "mlp.experts.down_proj",
    }
    """Experts of published checkpoints, and of transformers 5 in memory, as other families name them."""

    def metadata(self) -> dict[str, Any]:
        keys = super().metadata()
        self.config.integer("num_local_experts")  # zero stands for dense models, which have other tensors
        n_shared = self.config.integer("shared_intermediate_size", default=0, least=0)
        return keys | ({"expert_shared_feed_forward_length": n_shared} if n_shared else {})

    def layer_tensor(self, name: str, t: Lazy) -> Iterator[tuple[str, Lazy]]:
        if name == "shared_mlp.input_linear.weight":
            half = lazy.require(t, 2).shape[0] // 2
            yield "ffn_gate_shexp.weight", lazy.slice_rows(t, 0, half)
            yield "ffn_up_shexp.weight", lazy.slice_rows(t, half, 2 * half)
            return
        yield from super().layer_tensor(self.stacks.get(name, name), t)


FAMILIES = {
    "GraniteForCausalLM": Granite,
    "GraniteMoeForCausalLM": GraniteMoE,
    "GraniteMoeSharedForCausalLM": GraniteMoE,
}
