"""Models of real shapes with random weights: benchmarks without a download.

`open_preset("llama3-8b:Q4_K_M")` has the metadata and tensors of that model's file, each in the recipe's format, with
random weights. Sources of the shapes: the models' own config.json.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pyllm.bench.random_weights import RandomWeights
from pyllm.errors import ModelError
from pyllm.gguf.tensor import TensorInfo
from pyllm.gguf.types import by_name
from pyllm.records import dataclass

DEFAULT_RECIPE = "Q4_K_M"


@dataclass(frozen=True, slots=True)
class Latent:
    """Sizes of latent attention: columns of the latent row, rotated ones, others of a head's key, a head's value."""

    rank: int
    n_rot: int
    n_plain: int
    n_value: int


@dataclass(frozen=True, slots=True)
class Preset:
    """A model's shape. `head_dim` 0: n_embd / n_heads; `n_experts` 0: dense."""

    arch: str
    label: str
    """Size label, as in files."""
    n_layers: int
    n_embd: int
    n_ff: int
    n_heads: int
    n_kv_heads: int
    n_vocab: int
    n_ctx: int
    rope_base: float
    rope_factor: float = 0.0
    """Factor of Llama 3.1's rotary scaling; 0: none."""
    tied: bool = False
    """The embedding table is also the output matrix."""
    qk_norm: bool = False
    head_dim: int = 0
    n_experts: int = 0
    n_used: int = 0
    n_ff_expert: int = 0
    eps: float = 1e-5
    n_dense: int = 0
    """First layers without experts."""
    n_ff_shared: int = 0
    """Columns of shared experts; 0: none."""
    choice_bias: bool = False
    """Experts are chosen with a bias."""
    qkv_bias: bool = False
    ffn_norm: str = "ffn_norm"
    latent: Latent | None = None
    more: tuple[tuple[str, int | float | str | bool], ...] = ()
    """Further metadata, without the architecture's prefix."""

    @property
    def head(self) -> int:
        return self.head_dim or self.n_embd // self.n_heads


PRESETS: Mapping[str, Preset] = {
    "smollm2-135m": Preset("llama", "135M", 30, 576, 1536, 9, 3, 49152, 8192, 1e5, tied=True),
    "llama3-1b": Preset("llama", "1B", 16, 2048, 8192, 32, 8, 128256, 131072, 5e5, rope_factor=32.0, tied=True),
    "llama3-3b": Preset("llama", "3B", 28, 3072, 8192, 24, 8, 128256, 131072, 5e5, rope_factor=32.0, tied=True),
    "llama3-8b": Preset("llama", "8B", 32, 4096, 14336, 32, 8, 128256, 131072, 5e5, rope_factor=8.0),
    "llama3-70b": Preset("llama", "70B", 80, 8192, 28672, 64, 8, 128256, 131072, 5e5, rope_factor=8.0),
    "qwen3-30b-a3b": Preset(
        "qwen3moe", "30B.A3B", 48, 2048, 6144, 32, 4, 151936, 40960, 1e6,
        qk_norm=True, head_dim=128, n_experts=128, n_used=8, n_ff_expert=768, eps=1e-6,
    ),
    "deepseek-v2-lite": Preset(
        "deepseek2", "15.7B", 27, 2048, 10944, 16, 16, 102400, 163840, 1e4,
        n_experts=64, n_used=6, n_ff_expert=1408, eps=1e-6, n_dense=1, n_ff_shared=2816,
        latent=Latent(512, 64, 128, 128),
        more=(("rope.scaling.type", "yarn"), ("rope.scaling.factor", 40.0),
              ("rope.scaling.original_context_length", 4096), ("rope.scaling.yarn_log_multiplier", 0.0707),
              ("expert_weights_scale", 1.0), ("expert_gating_func", 1)),
    ),
    "glm4.5-air": Preset(
        "glm4moe", "106B.A12B", 46, 4096, 10944, 96, 8, 151552, 131072, 1e6,
        head_dim=128, n_experts=128, n_used=8, n_ff_expert=1408, n_dense=1, n_ff_shared=1408,
        choice_bias=True, qkv_bias=True, ffn_norm="post_attention_norm",
        more=(("rope.dimension_count", 64), ("expert_weights_norm", True), ("expert_gating_func", 2)),
    ),
    "llama4-scout": Preset(
        "llama4", "17B.16E", 48, 5120, 16384, 40, 8, 202048, 10485760, 5e5,
        head_dim=128, n_experts=16, n_used=1, n_ff_expert=8192, n_ff_shared=8192,
        more=(("interleave_moe_layer_step", 1),),
    ),
    "qwen3-embedding-0.6b": Preset(
        "qwen3", "0.6B", 28, 1024, 3072, 16, 8, 151669, 32768, 1e6,
        tied=True, qk_norm=True, head_dim=128, eps=1e-6, more=(("pooling_type", 3),),
    ),
    "tiny": Preset("llama", "tiny", 4, 256, 512, 4, 2, 512, 4096, 1e4),
    "tiny-moe": Preset(
        "qwen3moe", "tiny.moe", 3, 256, 512, 4, 2, 512, 4096, 1e4,
        qk_norm=True, head_dim=64, n_experts=8, n_used=2, n_ff_expert=256,
    ),
}  # fmt: skip
"""Shapes by name; the tiny ones are for quick trials."""
ALIASES: Mapping[str, str] = {"1b": "llama3-1b", "3b": "llama3-3b", "8b": "llama3-8b", "70b": "llama3-70b"}


class PresetModel:
    """Substitute for a `GGUFFile` of the preset, where a model is compiled."""

    def __init__(self, name: str, metadata: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> None:
        self.path: Path = Path(name)
        """The preset's name and recipe: there is no file."""
        self.metadata = metadata
        self.tensors = tensors

    def __enter__(self) -> PresetModel:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the weights."""
        self.tensors = {}


def parse(text: str) -> tuple[str, str]:
    """A preset's full name and recipe, from `llama3-8b:Q4_K_M`, `8b:q8_0`, `8b`.

    Raises ModelError for an unknown preset, FormatError for an unknown recipe.
    """
    from pyllm.quant.recipes import recipe_named

    name, _, recipe = text.partition(":")
    name = ALIASES.get(name.lower(), name.lower())
    if name not in PRESETS:
        known = ", ".join([*PRESETS, *ALIASES])
        raise ModelError(f"there is no preset {name!r}; there are {known}, each with a recipe: llama3-8b:Q4_K_M")
    return name, recipe_named(recipe or DEFAULT_RECIPE).name


def open_preset(text: str, *, with_weights: bool = True) -> PresetModel:
    """The model of a preset and a recipe. Without weights, tensors have their sizes and read as zeros.

    Raises ModelError, FormatError, OutOfMemoryError.
    """
    from pyllm.quant.recipes import choose, recipe_named

    name, recipe_name = parse(text)
    preset, recipe = PRESETS[name], recipe_named(recipe_name)
    metadata = {**metadata_of(name, preset), "general.file_type": recipe.file_type}
    plain = [TensorInfo(n, shape, "F32", _NOTHING) for n, shape in shapes_of(preset).items()]
    formats = {choice.name: choice.format for choice in choose(recipe, metadata, plain)}
    tensors = _tensors(preset, {t.name: (t.shape, formats[t.name]) for t in plain}, with_weights)
    return PresetModel(f"{name}:{recipe_name}", metadata, tensors)


_NOTHING = np.zeros(0, np.uint8)


def _tensors(
    preset: Preset, wanted: Mapping[str, tuple[tuple[int, ...], str]], with_weights: bool
) -> dict[str, TensorInfo]:
    """Vectors keep the size of activations: norms of one, real rotary factors."""
    matrices = {name: (math.prod(shape), format) for name, (shape, format) in wanted.items() if len(shape) > 1}
    most: dict[str, int] = {}
    for n, format in matrices.values():
        most[format] = max(n, most.get(format, 0))
    weights = RandomWeights(most) if with_weights else None
    tensors = {}
    for name, (shape, format) in wanted.items():
        if name == "rope_freqs.weight":
            data = _rope_factors(preset).view(np.uint8)
        elif len(shape) == 1:
            data = np.ones(shape, np.float32).view(np.uint8)
        elif weights is not None:
            data = weights.view(format, math.prod(shape))
        else:
            data = np.broadcast_to(np.zeros(1, np.uint8), by_name(format).n_bytes(math.prod(shape)))
        tensors[name] = TensorInfo(name, shape, format, data)
    return tensors


def metadata_of(name: str, p: Preset) -> dict[str, Any]:
    """The metadata of the model's file, by GGUF key."""
    metadata: dict[str, Any] = {
        "general.architecture": p.arch,
        "general.name": name,
        "general.size_label": p.label,
    }
    numbers: dict[str, int | float] = {
        "block_count": p.n_layers,
        "context_length": p.n_ctx,
        "embedding_length": p.n_embd,
        "feed_forward_length": p.n_ff,
        "attention.head_count": p.n_heads,
        "attention.head_count_kv": p.n_kv_heads,
        "attention.key_length": p.head,
        "attention.value_length": p.head,
        "attention.layer_norm_rms_epsilon": p.eps,
        "rope.freq_base": p.rope_base,
        "rope.dimension_count": p.head,
        "vocab_size": p.n_vocab,
    }
    if p.n_experts:
        numbers |= {
            "expert_count": p.n_experts,
            "expert_used_count": p.n_used,
            "expert_feed_forward_length": p.n_ff_expert,
        }
    if p.n_dense:
        numbers["leading_dense_block_count"] = p.n_dense
    if p.n_ff_shared:
        numbers |= {"expert_shared_count": p.n_ff_shared // p.n_ff_expert}
    if (a := p.latent) is not None:
        numbers |= {
            "attention.head_count_kv": 1,
            "attention.key_length": a.rank + a.n_rot,
            "attention.value_length": a.rank,
            "attention.key_length_mla": a.n_plain + a.n_rot,
            "attention.value_length_mla": a.n_value,
            "attention.kv_lora_rank": a.rank,
            "rope.dimension_count": a.n_rot,
        }
    return metadata | {f"{p.arch}.{key}": value for key, value in {**numbers, **dict(p.more)}.items()}


def shapes_of(p: Preset) -> dict[str, tuple[int, ...]]:
    """Every tensor of the model's file, by name, outermost axis first."""
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (p.n_vocab, p.n_embd),
        "output_norm.weight": (p.n_embd,),
    }
    if not p.tied:
        shapes["output.weight"] = (p.n_vocab, p.n_embd)
    if p.rope_factor:
        shapes["rope_freqs.weight"] = (p.head // 2,)
    for i in range(p.n_layers):
        layer = {"attn_norm": (p.n_embd,), p.ffn_norm: (p.n_embd,), **_attention(p), **_feed_forward(p, i)}
        shapes |= {f"blk.{i}.{name}.weight": shape for name, shape in layer.items()}
        if p.qkv_bias:
            shapes |= {f"blk.{i}.attn_{c}.bias": layer[f"attn_{c}"][:1] for c in "qkv"}
        if p.choice_bias and i >= p.n_dense:
            shapes[f"blk.{i}.exp_probs_b.bias"] = (p.n_experts,)
    return shapes


def _attention(p: Preset) -> dict[str, tuple[int, ...]]:
    if (a := p.latent) is not None:
        return {
            "attn_q": (p.n_heads * (a.n_plain + a.n_rot), p.n_embd),
            "attn_kv_a_mqa": (a.rank + a.n_rot, p.n_embd),
            "attn_kv_a_norm": (a.rank,),
            "attn_k_b": (p.n_heads, a.rank, a.n_plain),
            "attn_v_b": (p.n_heads, a.n_value, a.rank),
            "attn_output": (p.n_embd, p.n_heads * a.n_value),
        }
    layer: dict[str, tuple[int, ...]] = {
        "attn_q": (p.n_heads * p.head, p.n_embd),
        "attn_k": (p.n_kv_heads * p.head, p.n_embd),
        "attn_v": (p.n_kv_heads * p.head, p.n_embd),
        "attn_output": (p.n_embd, p.n_heads * p.head),
    }
    return {**layer, "attn_q_norm": (p.head,), "attn_k_norm": (p.head,)} if p.qk_norm else layer


def _feed_forward(p: Preset, il: int) -> dict[str, tuple[int, ...]]:
    if not p.n_experts or il < p.n_dense:
        return _gated(p.n_ff, p.n_embd, "")
    layer: dict[str, tuple[int, ...]] = {
        "ffn_gate_inp": (p.n_experts, p.n_embd),
        "ffn_gate_exps": (p.n_experts, p.n_ff_expert, p.n_embd),
        "ffn_up_exps": (p.n_experts, p.n_ff_expert, p.n_embd),
        "ffn_down_exps": (p.n_experts, p.n_embd, p.n_ff_expert),
    }
    return layer | (_gated(p.n_ff_shared, p.n_embd, "_shexp") if p.n_ff_shared else {})


def _gated(n_ff: int, n_embd: int, kind: str) -> dict[str, tuple[int, ...]]:
    return {f"ffn_gate{kind}": (n_ff, n_embd), f"ffn_up{kind}": (n_ff, n_embd), f"ffn_down{kind}": (n_embd, n_ff)}


def _rope_factors(p: Preset) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Divisors of rotary frequencies by Llama 3.1's scaling: float32 [head / 2].

    Wavelengths below 2048 positions are kept, those above 8192 scaled by the whole factor, with a blend between.
    Source: `rope_scaling` of type "llama3" (low_freq_factor 1, high_freq_factor 4, 8192 original positions).
    """
    frequencies = p.rope_base ** -(np.arange(0, p.head, 2, dtype=np.float64) / p.head)
    turns = 8192 * frequencies / (2 * np.pi)
    kept = np.clip((turns - 1) / 3, 0, 1)
    return (1 / ((1 - kept) / p.rope_factor + kept)).astype(np.float32)
