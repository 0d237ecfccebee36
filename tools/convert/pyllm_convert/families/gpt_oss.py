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
_PARTS = {"gate_up_proj": ("ffn_gate_exps", "ffn_up_exps"), "down_proj": ("ffn_down_exps",)}


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
        return super().tensors(_with_blocks_joined(stored))

    def layer_tensor(self, name: str, t: Lazy) -> Iterator[tuple[str, Lazy]]:
        if name == "self_attn.sinks":
            yield "attn_sinks.weight", lazy.require(t, 1)
            return
        stem = name.removeprefix(_EXPERTS)
        part, bias, _ = stem.partition("_bias")
        if not name.startswith(_EXPERTS) or part not in _PARTS:
            yield from super().layer_tensor(name, t)
            return
        targets = _PARTS[part]
        if bias:
            lazy.require(t, 2)
            for i, target in enumerate(targets):
                yield f"{target}.bias", lazy.slice_columns(t, i, None, len(targets))
            return
        if t.dtype != "MXFP4":
            t = lazy.transposed(lazy.require(t, 3))
        for i, target in enumerate(targets):
            yield f"{target}.weight", lazy.slice_rows(t, i, t.shape[1], len(targets))


def _with_blocks_joined(stored: Mapping[str, Lazy]) -> dict[str, Lazy]:
    """Blocks and their exponents, two tensors in the checkpoint, as one."""
    joined = {}
    for name, t in stored.items():
        stem = name.removesuffix("_blocks")
        if stem != name:
            if f"{stem}_scales" not in stored:
                raise ModelError(f"tensor {name} comes without its scales, {stem}_scales")
            joined[stem] = mxfp4(stem, t, stored[f"{stem}_scales"])
        elif not name.endswith("_scales"):
            joined[name] = t
    return joined


FAMILIES = {"GptOssForCausalLM": GptOss}
