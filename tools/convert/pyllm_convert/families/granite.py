"""Granite 3 and 4, dense, mixtures of experts and hybrids: embeddings, parts, scores and logits are scaled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from pyllm.errors import ModelError
from pyllm_convert import lazy
from pyllm_convert.families.base import Family
from pyllm_convert.families.llama import Llama
from pyllm_convert.families.mamba import KINDS, HasMamba2
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


class GraniteHybrid(HasMamba2, GraniteMoE):
    """Mamba 2 on most layers, attention on the others; dense models have the shared network alone."""

    arch = "granitehybrid"
    defaults: ClassVar[Mapping[str, Any]] = {
        **GraniteMoE.defaults,
        "mamba_n_heads": 128,
        "mamba_d_state": 256,
        "mamba_n_groups": 1,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
        "shared_intermediate_size": 1024,
    }

    @classmethod
    def of(cls, config: Mapping[str, Any], folder: Path | None = None) -> type[Family]:
        kinds = _kinds(config)
        if not kinds or "mamba" in kinds:
            return cls
        return GraniteMoEOfHybrids if config.get("num_local_experts", 8) else GraniteOfHybrids

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self.refuse("mamba_n_groups", 1)
        self.kinds = _kinds(config) or ["mamba"] * self.n_layers
        if len(self.kinds) != self.n_layers:
            raise ModelError(f"config.json says what {len(self.kinds)} layers are, and counts {self.n_layers}")
        if unknown := set(self.kinds) - {"mamba", "attention"}:
            raise ModelError(f"layers of config.json are {', '.join(sorted(unknown))}; mamba and attention are known")

    def metadata(self) -> dict[str, Any]:
        kv_heads = [self.n_kv_heads if kind == "attention" else 0 for kind in self.kinds]
        return _of_hybrids(self) | self.states() | {"attention.head_count_kv": kv_heads}

    def layer_tensor(self, name: str, t: Lazy) -> Iterator[tuple[str, Lazy]]:
        yield from _dense(super().layer_tensor(name, t), self.n_experts)


class GraniteMoEOfHybrids(GraniteMoE):
    """A checkpoint of the hybrid's class whose layers all have attention."""

    def metadata(self) -> dict[str, Any]:
        self.refuse("position_embedding_type", "rope")
        return super().metadata()


class GraniteOfHybrids(GraniteMoE):
    """The same, without experts."""

    arch = "granite"

    def metadata(self) -> dict[str, Any]:
        return _of_hybrids(self)

    def layer_tensor(self, name: str, t: Lazy) -> Iterator[tuple[str, Lazy]]:
        yield from _dense(super().layer_tensor(name, t), self.n_experts)


def _kinds(config: Mapping[str, Any]) -> list[str]:
    """What each layer is; nothing where config.json does not say."""
    kinds = config.get("layer_types") or config.get("layers_block_type")
    return [KINDS.get(str(kind), str(kind)) for kind in kinds] if isinstance(kinds, list) else []


def _of_hybrids(family: GraniteMoE) -> dict[str, Any]:
    """Keys of a model that may have experts, and may have positions."""
    has_rope = family.config.text("position_embedding_type", default="nope") == "rope"
    keys = GraniteMoE.metadata(family) if family.n_experts else Granite.metadata(family)
    if not family.n_experts:
        n_shared = family.config.integer("shared_intermediate_size")
        keys |= {"feed_forward_length": n_shared, "expert_shared_feed_forward_length": n_shared}
    return keys | {"rope.scaling.finetuned": has_rope}


def _dense(tensors: Iterator[tuple[str, Lazy]], n_experts: int) -> Iterator[tuple[str, Lazy]]:
    """Tensors of the shared network, which is the only one where there are no experts."""
    for name, t in tensors:
        yield (name if n_experts else name.replace("_shexp", "")), t


FAMILIES = {
    "GraniteForCausalLM": Granite,
    "GraniteMoeForCausalLM": GraniteMoE,
    "GraniteMoeSharedForCausalLM": GraniteMoE,
    "GraniteMoeHybridForCausalLM": GraniteHybrid,
}
