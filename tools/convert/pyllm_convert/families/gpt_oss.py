"""gpt-oss: experts in 4-bit blocks or in full, gate and up interleaved, biases everywhere, attention sinks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from pyllm.errors import ModelError
from pyllm_convert import lazy
from pyllm_convert.families.base import Family
from pyllm_convert.lazy import Lazy
from pyllm_convert.quantized import mxfp4

_EXPERTS = "mlp.experts."
_PARTS = {"gate_up": ("ffn_gate_exps", "ffn_up_exps"), "down": ("ffn_down_exps",)}
_KINDS = ("", "_bias", "_blocks")


class GptOss(Family):
    """A checkpoint in full has experts as [experts, columns, rows], which are transposed."""

    arch = "gpt-oss"
    defaults: ClassVar[Mapping[str, Any]] = {
        "head_dim": 64,
        "num_key_value_heads": 8,
        "num_local_experts": 128,
        "num_experts_per_tok": 4,
        "sliding_window": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 150000.0,
    }
    window_period = 2
    layer_names: ClassVar[dict[str, str]] = Family.layer_names | {
        "post_attention_layernorm": "post_attention_norm",
        "mlp.router": "ffn_gate_inp",
    }

    def metadata(self) -> dict[str, Any]:
        self.refuse("swiglu_alpha", 1.702)
        self.refuse("swiglu_limit", 7, 7.0)
        return super().metadata() | {"expert_feed_forward_length": self.config.integer("intermediate_size")}

    def tensors(self, stored: Mapping[str, Lazy]) -> dict[str, Lazy]:
        self._scales = {name: t for name, t in stored.items() if name.endswith("_scales")}
        return super().tensors({name: t for name, t in stored.items() if name not in self._scales})

    def layer_tensor(self, name: str, t: Lazy) -> Iterator[tuple[str, Lazy]]:
        if name == "self_attn.sinks":
            yield "attn_sinks.weight", lazy.require(t, 1)
            return
        part, _, kind = name.removeprefix(_EXPERTS).partition("_proj")
        if not name.startswith(_EXPERTS) or part not in _PARTS or kind not in _KINDS:
            yield from super().layer_tensor(name, t)
            return
        targets = _PARTS[part]
        for i, target in enumerate(targets):
            ending = "bias" if kind == "_bias" else "weight"
            yield f"{target}.{ending}", self._every(t, kind, i, len(targets))

    def _every(self, t: Lazy, kind: str, first: int, step: int) -> Lazy:
        """Rows (of biases columns) first, first + step, … of each expert, as the file has them."""
        if kind == "_bias":
            return lazy.slice_columns(lazy.require(t, 2), first, None, step)
        if kind == "":
            t = lazy.transposed(lazy.require(t, 3))
            return lazy.slice_rows(t, first, t.shape[1], step)
        scales = self._scales.get(t.name.removesuffix("_blocks") + "_scales")
        if scales is None:
            raise ModelError(f"tensor {t.name} comes without its scales")
        return mxfp4(t.name, t, scales, first, step)


FAMILIES = {"GptOssForCausalLM": GptOss}
