"""The reference models with other metadata, and weights that make attention sharp enough to tell rotations apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pyllm.gguf.tensor import TensorInfo

YARN = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 8.0,
    "rope.scaling.original_context_length": 4096,
}
SHORT_YARN = YARN | {"rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64}
LONGROPE = {
    "rope.scaling.type": "longrope",
    "rope.scaling.attn_factor": 1.19,
    "rope.scaling.original_context_length": 64,
}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-linear": ("llama-dense", {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}),
    "llama-yarn": ("llama-dense", YARN),
    "llama-none": ("llama-dense", {"rope.scaling.type": "none", "rope.scaling.factor": 4.0}),
    "qwen2-yarn-attn-factor": ("qwen2-dense", YARN | {"rope.scaling.attn_factor": 1.3, "rope.freq_base": 500000.0}),
    "qwen3-yarn": ("qwen3-dense", SHORT_YARN),
    "gemma2-yarn": ("gemma2-dense", YARN),
    "gemma3-linear": ("gemma3-dense", {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}),
    "gemma3-window-base": ("gemma3-dense", {"rope.freq_base": 1e6, "rope.freq_base_swa": 20000.0}),
    "gpt-oss-yarn": ("gpt-oss-moe", SHORT_YARN | {"rope.freq_base": 150000.0}),
    "olmo2-yarn": ("olmo2-dense", YARN | {"rope.freq_base": 500000.0}),
    "phi3-longrope": ("phi3-dense", LONGROPE),
    "phi3-shortrope": ("phi3-dense", LONGROPE | {"rope.scaling.original_context_length": 4096}),
    "mistral3-yarn": (
        "mistral3-dense",
        YARN
        | {
            "rope.scaling.yarn_log_multiplier": 1.0,
            "rope.scaling.yarn_beta_fast": 16.0,
            "rope.scaling.yarn_beta_slow": 2.0,
        },
    ),
}


def sharpen(name: str, values: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """What a tensor of the reference models becomes."""
    if name.startswith("rope_f"):
        return np.abs(values) * 4 + np.float32(0.5)
    if name.endswith((".attn_q.scale", ".attn_k.scale")):
        return np.full_like(values, 3)
    if name.endswith((".attn_v.scale", ".attn_output.scale")):
        return np.ones_like(values)
    if name.endswith(("attn_q_norm.weight", "attn_k_norm.weight")):
        return values * 8
    return values


def changed(
    metadata: Mapping[str, Any], tensors: Mapping[str, TensorInfo], changes: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
    """Metadata and tensors of a case."""
    arch = metadata["general.architecture"]
    new = {key: metadata[key] for key in metadata} | {f"{arch}.{key}": value for key, value in changes.items()}
    out = {}
    for name, tensor in tensors.items():
        values = sharpen(name, tensor.data.view(np.float32))
        out[name] = TensorInfo(name, tensor.shape, tensor.format, values.view(np.uint8))
    return new, out
