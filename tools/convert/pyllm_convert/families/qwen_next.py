"""Qwen3-Next and Qwen 3.5 to 3.8, dense and mixtures of experts: Gated DeltaNet, and attention on some layers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pyllm.errors import ModelError
from pyllm_convert import lazy
from pyllm_convert.families.base import Family
from pyllm_convert.families.qwen import Qwen2MoE
from pyllm_convert.lazy import Lazy

_NEXT = re.compile(r"model\.mtp\.(?:layers\.(\d{1,5})\.)?(.+)")
_NEXT_PARTS = {
    "fc": "eh_proj",
    "pre_fc_norm_embedding": "enorm",
    "pre_fc_norm_hidden": "hnorm",
    "norm": "shared_head.norm",
}
"""Parts of what predicts further tokens, beside its layers."""
_KINDS = ("linear_attention", "full_attention")


def _decays(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """-exp(x), the nearest number in float32."""
    return -np.exp(values.astype(np.float64)).astype(np.float32)


class GatedDelta(Family):
    """Norms multiply by 1 + weight, those in Gated DeltaNet by their weight as it is. Layers that predict further
    tokens come after the others, where the checkpoint has them; pyllm does not run them."""

    defaults: ClassVar[Mapping[str, Any]] = {
        "head_dim": 256,
        "partial_rotary_factor": 0.25,
        "full_attention_interval": 4,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
    }
    rotates_in_part = True
    norm_offset = 1.0
    tiled: ClassVar[bool] = True
    """Heads of values are in such an order that head h has key head h % n_key_heads; else as in the checkpoint."""
    layer_names: ClassVar[dict[str, str]] = Qwen2MoE.layer_names | {
        "post_attention_layernorm": "post_attention_norm",
        "linear_attn.in_proj_z": "attn_gate",
        "linear_attn.in_proj_b": "ssm_beta",
        "linear_attn.in_proj_a": "ssm_alpha",
        "linear_attn.in_proj_ba": "ssm_ba",
        "linear_attn.out_proj": "ssm_out",
        "eh_proj": "nextn.eh_proj",
        "enorm": "nextn.enorm",
        "hnorm": "nextn.hnorm",
        "shared_head.norm": "nextn.shared_head_norm",
    }

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        c = self.config
        self.key_heads, self.value_heads = c.integer("linear_num_key_heads"), c.integer("linear_num_value_heads")
        self.key_dim, self.value_dim = c.integer("linear_key_head_dim"), c.integer("linear_value_head_dim")
        if self.value_heads % self.key_heads:
            raise ModelError(f"config.json shares {self.key_heads} heads of keys among {self.value_heads} of values")

    def look(self, stored: Mapping[str, Lazy]) -> None:
        found = [self.own_name(name) or "" for name in stored if "mtp." in name]
        layers = {int(name.split(".", 3)[2]) for name in found if name.startswith("model.layers.")}
        self.n_next = sum(self.n_layers + i in layers for i in range(len(layers)))

    def metadata(self) -> dict[str, Any]:
        c = self.config
        self.refuse("attention_bias", False)
        return (
            super().metadata()
            | {
                "ssm.conv_kernel": c.integer("linear_conv_kernel_dim"),
                "ssm.state_size": self.key_dim,
                "ssm.group_count": self.key_heads,
                "ssm.time_step_rank": self.value_heads,
                "ssm.inner_size": self.value_heads * self.value_dim,
                "nextn_predict_layers": self.n_next,
            }
            | self._kinds()
        )

    def _kinds(self) -> dict[str, Any]:
        """Which layers have attention: every n-th, unless there is a flag for each layer."""
        keys: dict[str, Any] = {"full_attention_interval": self.config.integer("full_attention_interval")}
        kinds = self.config.items("layer_types", self.n_layers)
        if kinds is None:
            return keys
        if any(kind not in _KINDS for kind in kinds):
            raise ModelError(f"config.json's layer_types holds {kinds!r}; known are {', '.join(_KINDS)}")
        recurrent = [kind == "linear_attention" for kind in kinds]
        return keys | {"attention.recurrent_layers": recurrent + [False] * self.n_next}

    # --- tensors

    def own_name(self, name: str) -> str | None:
        own = super().own_name(name)
        further = _NEXT.fullmatch(own or "")
        if own is None or further is None:
            return own
        layer, rest = further.groups()
        if layer is not None:
            return f"model.layers.{self.n_layers + int(layer)}.{rest}"
        stem, _, ending = rest.rpartition(".")
        return f"model.layers.{self.n_layers}.{_NEXT_PARTS.get(stem, f'mtp.{stem}')}.{ending}"

    def layer_tensor(self, name: str, t: Lazy) -> Iterator[tuple[str, Lazy]]:
        part = name.removeprefix("linear_attn.")
        if part == name:
            yield from super().layer_tensor(name, t)
        elif part == "A_log":
            yield "ssm_a", lazy.mapped(self._by_head(lazy.require(t, 1), 1), _decays)
        elif part == "dt_bias":
            yield "ssm_dt.bias", self._by_head(lazy.require(t, 1), 1)
        elif part == "norm.weight":
            yield "ssm_norm.weight", lazy.require(t, 1)
        elif part == "conv1d.weight":
            rows = 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim
            kernel = self.config.integer("linear_conv_kernel_dim")
            yield "ssm_conv1d.weight", self._qkv(lazy.reshaped(t, (rows, kernel)))
        elif part == "in_proj_qkv.weight":
            yield "attn_qkv.weight", self._qkv(lazy.require(t, 2))
        elif part == "in_proj_qkvz.weight":
            yield from self._apart(lazy.require(t, 2))
        else:
            for new, value in super().layer_tensor(name, t):
                yield new, self._by_head(value, self.value_dim if new.startswith("attn_gate") else 1, new)

    def column_order(self, name: str) -> NDArray[np.int64] | None:
        return self._order(self.value_dim) if self._reorders and name.endswith("ssm_out.weight") else None

    @property
    def _reorders(self) -> bool:
        return self.tiled and self.key_heads not in (1, self.value_heads)

    def _order(self, n: int) -> NDArray[np.int64]:
        """The order of rows of heads of values, `n` for each head, so that key heads are tiled."""
        rows = np.arange(self.value_heads * n, dtype=np.int64)
        return rows.reshape(self.key_heads, -1, n).swapaxes(0, 1).reshape(-1)

    def _by_head(self, t: Lazy, n: int, name: str = "") -> Lazy:
        """Rows of heads of values, `n` for each, in the file's order."""
        if not self._reorders or name.startswith("ssm_out"):
            return t
        if t.shape[0] != self.value_heads * n:
            raise ModelError(f"tensor {t.name} has {t.shape[0]} rows, which are not {n} for each head")
        return lazy.reordered(t, self._order(n))

    def _qkv(self, t: Lazy) -> Lazy:
        """Rows of queries, keys and values, in the file's order."""
        keys = 2 * self.key_heads * self.key_dim
        if t.shape[0] != keys + self.value_heads * self.value_dim:
            raise ModelError(f"tensor {t.name} has {t.shape[0]} rows, not those of all heads")
        if not self._reorders:
            return t
        return lazy.take(t, np.concatenate([np.arange(keys, dtype=np.int64), keys + self._order(self.value_dim)]))

    def _apart(self, t: Lazy) -> Iterator[tuple[str, Lazy]]:
        """Two matrices of one whose rows are, for each key head: query, key, its heads' values, their gates."""
        n, d = self.key_heads, self.key_dim
        values = self.value_heads // n * self.value_dim
        if t.shape[0] != n * 2 * (d + values):
            raise ModelError(f"tensor {t.name} has {t.shape[0]} rows; {n * 2 * (d + values)} are needed there")
        rows = np.arange(t.shape[0], dtype=np.int64).reshape(n, -1)
        parts = np.split(rows, [d, 2 * d, 2 * d + values], axis=1)
        q, k, v, z = (part.reshape(-1) for part in parts)
        yield "attn_qkv.weight", lazy.take(t, np.concatenate([q, k, v]))
        yield "attn_gate.weight", lazy.take(t, z)


class Mixture(GatedDelta):
    """Experts on all layers, whose weights sum to one, beside one that all tokens use, through a gate."""

    defaults: ClassVar[Mapping[str, Any]] = {
        **GatedDelta.defaults,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
    }

    @property
    def n_ff(self) -> int:
        """No layer has a plain network; llama.cpp wants the key."""
        return self.config.integer("intermediate_size", "shared_expert_intermediate_size")

    def metadata(self) -> dict[str, Any]:
        self.refuse("norm_topk_prob", True)
        self.refuse("decoder_sparse_step", 1)
        self.refuse("mlp_only_layers", [])
        return super().metadata() | {
            "expert_feed_forward_length": self.config.integer("moe_intermediate_size"),
            "expert_shared_feed_forward_length": self.config.integer("shared_expert_intermediate_size"),
        }


class Qwen3Next(Mixture):
    """Heads are as in the checkpoint."""

    arch = "qwen3next"
    tiled = False
    defaults: ClassVar[Mapping[str, Any]] = {**Mixture.defaults, "num_experts": 512, "num_experts_per_tok": 10}


def _sections(family: Family) -> dict[str, Any]:
    """How many pairs turn by each component of a position, which llama.cpp needs; for text they are equal."""
    table = family.config.table("rope_parameters", "rope_scaling")
    given = table.get("mrope_section", [11, 11, 10])
    if not isinstance(given, list) or len(given) > 4 or not all(type(n) is int and 0 <= n < 1 << 16 for n in given):
        raise ModelError(f"config.json's mrope_section is {given!r}, not up to 4 counts")
    return {"rope.dimension_sections": [*given, *[0] * (4 - len(given))]}


class Qwen35(GatedDelta):
    arch = "qwen35"

    def metadata(self) -> dict[str, Any]:
        return super().metadata() | _sections(self)


class Qwen35MoE(Mixture):
    arch = "qwen35moe"
    defaults: ClassVar[Mapping[str, Any]] = {**Mixture.defaults, "num_experts": 256, "num_experts_per_tok": 8}

    def metadata(self) -> dict[str, Any]:
        return super().metadata() | _sections(self)


FAMILIES = {
    "Qwen3NextForCausalLM": Qwen3Next,
    "Qwen3_5ForCausalLM": Qwen35,
    "Qwen3_5ForConditionalGeneration": Qwen35,
    "Qwen3_5MoeForCausalLM": Qwen35MoE,
    "Qwen3_5MoeForConditionalGeneration": Qwen35MoE,
}
