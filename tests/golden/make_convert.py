"""Write tests/golden/convert/: tiny Hugging Face folders of every family that pyllm converts, and their logits.

    python tests/golden/make_convert.py [FOLDER] [CASE …]

Needs torch and transformers (written with transformers 5.23, torch 2.15), which the tests themselves do not. Each case
is a folder with config.json, safetensors and logits.npy, float32 [tokens, vocabulary], which transformers computed in
float32 from the weights as they are stored. Of encoders it holds states [tokens, n_embd], and scores.npy [labels] those
of a classifier; models that transformers does not have are without. The tokens are `tokens(n)` below. Weights are
random, and large enough that attention is sharp, so that a wrong rotation, permutation or scale shows.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert_case import EXPERTS, HALF, LLAMA3, LONGROPE, N_TOKENS, SMALL, VOCAB, YARN, Case
from convert_cases import FURTHER
from convert_changes import (
    fp8_blocks,
    fp8_channels,
    internlm2,
    lists_by_layer,
    mxfp4,
    rotary_names,
    rotary_pct,
    scoring,
    stacked,
)
from convert_encoders import ENCODERS
from convert_hybrid import HYBRID
from convert_older import OLDER

FOLDER = Path(__file__).resolve().parent / "convert"
SHARP = (
    "q_proj", "k_proj", "self.query", "self.key", "qkv", "query_key_value", "c_attn", "router", "gate.weight",
    "gate.wg",
)  # fmt: skip
"""Parts whose weights are larger, so that attention and choices of experts are sharp."""


def tokens(n: int = N_TOKENS) -> list[int]:
    """Token ids whose logits are stored."""
    return [1 + (i * i * 31 + i * 17 + 5) % (VOCAB - 1) for i in range(n)]


CASES: dict[str, Case] = {
    "llama": Case("Llama", SMALL | {"head_dim": 16}),
    "llama-f32-tied": Case("Llama", SMALL | {"tie_word_embeddings": True, "head_dim": 8}, "float32"),
    "llama-bias-f16": Case("Llama", SMALL | {"attention_bias": True, "mlp_bias": True, "head_dim": 8}, "float16"),
    "llama-rope3-shards": Case("Llama", SMALL | {"head_dim": 8, "rope_parameters": LLAMA3}, shards=True),
    "llama-linear": Case(
        "Llama",
        SMALL | {"head_dim": 8, "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    ),
    "llama-fp8-blocks": Case("Llama", SMALL | {"head_dim": 8}, after=fp8_blocks),
    "llama-fp8-channels": Case("Llama", SMALL | {"head_dim": 8}, after=fp8_channels),
    "mistral": Case("Mistral", SMALL | {"head_dim": 16, "sliding_window": None}),
    "mixtral": Case("Mixtral", SMALL | EXPERTS | {"head_dim": 8}),
    "qwen2": Case("Qwen2", SMALL),
    "qwen2-yarn": Case("Qwen2", SMALL | {"rope_parameters": YARN}),
    "qwen3": Case("Qwen3", SMALL | {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3moe": Case(
        "Qwen3Moe", SMALL | EXPERTS | {"head_dim": 16, "moe_intermediate_size": 32, "norm_topk_prob": True}
    ),
    "qwen3moe-stacked": Case(
        "Qwen3Moe", SMALL | EXPERTS | {"moe_intermediate_size": 32, "norm_topk_prob": True}, after=stacked
    ),
    "gemma2": Case("Gemma2", SMALL | {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16}),
    "gemma3": Case(
        "Gemma3Text",
        SMALL
        | {"num_hidden_layers": 3, "head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 24}
        | {
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
            },
        },
    ),
    "phi3": Case("Phi3", SMALL | {"sliding_window": None}),
    "phi3-longrope": Case(
        "Phi3",
        SMALL
        | {
            "num_attention_heads": 2,
            "original_max_position_embeddings": 16,
            "rope_parameters": LONGROPE | {"partial_rotary_factor": 0.5},
        },
    ),
    "phi3-shortrope": Case(
        "Phi3",
        SMALL
        | {
            "num_attention_heads": 2,
            "original_max_position_embeddings": 16,
            "rope_parameters": LONGROPE | {"partial_rotary_factor": 0.5},
        },
        n_tokens=12,
    ),
    "gpt-oss": Case(
        "GptOss",
        SMALL | EXPERTS | {"head_dim": 16, "sliding_window": 8, "intermediate_size": 32},
    ),
    "gpt-oss-mxfp4": Case(
        "GptOss",
        SMALL | EXPERTS | {"head_dim": 16, "sliding_window": 8, "rope_parameters": YARN | {"truncate": True}},
        after=mxfp4,
    ),
    "olmo2": Case("Olmo2", SMALL),
    "olmo3-yarn": Case(
        "Olmo3",
        SMALL
        | {
            "num_hidden_layers": 3,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                "full_attention": YARN | {"attention_factor": 1.2, "beta_fast": 16.0, "beta_slow": 2.0},
            },
        },
    ),
    "smollm3": Case("SmolLM3", SMALL | {"num_hidden_layers": 4, "intermediate_size": 32}),
    "gptneox": Case("GPTNeoX", SMALL | {"rope_parameters": HALF}, after=rotary_pct),
    "gptneox-serial": Case(
        "GPTNeoX",
        SMALL
        | {"hidden_act": "gelu_fast", "use_parallel_residual": False, "attention_bias": False}
        | {"rope_parameters": HALF | {"rope_theta": 20000.0}},
        after=rotary_names,
    ),
    "phi2": Case("Phi", SMALL | {"num_key_value_heads": 4, "rope_parameters": HALF}),
    "stablelm": Case("StableLm", SMALL | {"use_qkv_bias": True, "rope_parameters": HALF}),
    "stablelm-parallel": Case(
        "StableLm",
        SMALL
        | {
            "qk_layernorm": True,
            "use_parallel_residual": True,
            "rope_parameters": HALF | {"partial_rotary_factor": 1.0},
        },
    ),
    "starcoder2": Case("Starcoder2", SMALL | {"sliding_window": 8}),
    "starcoder2-untied": Case("Starcoder2", SMALL | {"use_bias": False, "tie_word_embeddings": False}),
    "qwen2moe": Case(
        "Qwen2Moe",
        SMALL
        | {"num_experts": 4, "num_experts_per_tok": 2}
        | {"moe_intermediate_size": 8, "shared_expert_intermediate_size": 16},
    ),
    "internlm2": Case("Llama", SMALL | {"head_dim": 8}, after=internlm2, foreign=True),
    "internlm2-bias": Case(
        "Llama",
        SMALL | {"head_dim": 8, "attention_bias": True, "num_hidden_layers": 1},
        after=internlm2,
        foreign=True,
    ),
    "hunyuan-dense": Case("HunYuanDenseV1", SMALL | {"head_dim": 16, "attention_bias": True, "num_hidden_layers": 1}),
    "hunyuan-dense-alpha": Case(
        "HunYuanDenseV1",
        SMALL
        | {"head_dim": 16, "tie_word_embeddings": True, "max_position_embeddings": 32768}
        | {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "alpha": 50.0, "factor": 1.0}},
    ),
    "hunyuan-moe": Case(
        "HunYuanMoEV1",
        SMALL | {"num_experts": 4, "moe_topk": 2, "intermediate_size": 8, "head_dim": 8},
        after=lists_by_layer,
    ),
    "minimax-m2": Case(
        "MiniMaxM2",
        SMALL | EXPERTS | {"head_dim": 16, "intermediate_size": 8, "rotary_dim": 8},
        after=scoring,
    ),
    **FURTHER,
    **HYBRID,
    **OLDER,
    **ENCODERS,
}


def build(case: Case, seed: int) -> Any:
    """A model of a case with random weights, rounded to how they are stored."""
    import torch
    import transformers

    config = getattr(transformers, f"{case.model}Config")(**case.config)
    causal = case.head == "ForCausalLM"
    name = case.model.removesuffix("Text") if causal else case.model
    heads = ("ForCausalLM", "LMHeadModel") if causal else (case.head,)
    kinds = (getattr(transformers, name + head, None) for head in heads)
    model = next(kind for kind in kinds if kind is not None)(config)
    random = torch.Generator().manual_seed(seed)
    zero_centred = case.model in ("Gemma2", "Gemma3Text")
    for name, p in model.named_parameters():
        p.data = torch.randn(p.shape, generator=random)
        if "norm" in name.lower():
            p.data = p.data * 0.3 + (0.0 if zero_centred else 1.0)
        elif p.ndim > 1 and "embed" not in name and "bias" not in name:
            fan_in = p.shape[1] if case.model == "GptOss" or p.ndim == 2 else p.shape[2]
            gain = 2.5 if any(part in name for part in SHARP) else 1.0
            p.data *= gain / fan_in**0.5
        else:
            p.data *= 0.5
    for name, b in model.named_buffers():
        if name.endswith(("e_score_correction_bias", "expert_bias", "layer_scalar")):
            b.data = torch.randn(b.shape, generator=random) * 0.3 + float("scalar" in name)
    return model.to(getattr(torch, case.dtype))


def random_tensors(shapes: Mapping[str, tuple[int, ...]], dtype: str, seed: int) -> dict[str, Any]:
    """Tensors of these shapes."""
    import torch

    random = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=random).to(getattr(torch, dtype)) for name, shape in shapes.items()}


def plain(tensors: dict[str, Any]) -> dict[str, Any]:
    """Tensors as transformers loads them without quantization: float8 multiplied by scales, 4-bit blocks unpacked."""
    import torch
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    out: dict[str, Any] = {}
    for name, t in tensors.items():
        if t.dtype is torch.float8_e4m3fn:
            scale = tensors.get(f"{name}_scale_inv", tensors.get(f"{name}_scale")).float()
            if scale.ndim == 2:
                scale = scale.repeat_interleave(t.shape[0] // scale.shape[0], 0)
                scale = scale.repeat_interleave(t.shape[1] // scale.shape[1], 1)
            out[name] = t.float() * scale
        elif name.endswith("_blocks"):
            stem = name.removesuffix("_blocks")
            out[stem] = convert_moe_packed_tensors(t, tensors[f"{stem}_scales"], dtype=torch.float32)
        elif not name.endswith(("_scale_inv", "weight_scale", "_scales")):
            out[name] = t
    return out


def write(folder: Path, tensors: dict[str, Any], config: dict[str, Any], shards: bool = False) -> None:
    """A Hugging Face folder."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    names = sorted(tensors)
    parts = [names[::2], names[1::2]] if shards else [names]
    where = {}
    for i, part in enumerate(parts):
        file = f"model-{i + 1:05d}-of-{len(parts):05d}.safetensors" if shards else "model.safetensors"
        save_file({n: tensors[n].contiguous() for n in part}, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(part, file)
    if shards:
        index = {"metadata": {}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1, sort_keys=True) + "\n")


def logits(folder: Path, ids: list[int], head: str) -> Any:
    """float32 [tokens, vocabulary], by transformers; of "Model" states [tokens, n_embd], of classifiers [labels]."""
    import torch
    import transformers

    kind = getattr(transformers, f"AutoModel{head.removeprefix('Model')}")
    model = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        out = model.eval()(torch.tensor([ids]))
    return (out.last_hidden_state if head == "Model" else out.logits)[0].float().numpy()


def make(folder: Path, case: Case, seed: int) -> None:
    """Write one case to `folder`."""
    import numpy as np
    from safetensors.torch import load_file

    shutil.rmtree(folder, ignore_errors=True)
    if case.shapes is not None:
        write(folder, random_tensors(case.shapes, case.dtype, seed), dict(case.config))
        return
    with tempfile.TemporaryDirectory() as scratch:
        saved = Path(scratch) / "saved"
        build(case, seed).save_pretrained(saved)
        config = json.loads((saved / "config.json").read_text())
        tensors = load_file(saved / "model.safetensors")
        known = (dict(tensors), dict(config))
        if case.after:
            case.after(tensors, config)
        write(folder, tensors, config, case.shards)
        unquantized = {k: v for k, v in config.items() if k != "quantization_config"}
        write(saved, *(known if case.foreign else (plain(tensors), unquantized)))
        ids = tokens(case.n_tokens)
        np.save(folder / "logits.npy", logits(saved, ids, case.head if case.head == "ForCausalLM" else "Model"))
        if case.head == "ForSequenceClassification":
            np.save(folder / "scores.npy", logits(saved, ids, case.head))


def main(arguments: list[str]) -> None:
    folder = Path(arguments[0]) if arguments else FOLDER
    for seed, (name, case) in enumerate(CASES.items()):
        if not arguments[1:] or name in arguments[1:]:
            make(folder / name, case, seed)


if __name__ == "__main__":
    main(sys.argv[1:])
