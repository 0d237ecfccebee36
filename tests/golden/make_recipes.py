"""Writes recipes.json: which format llama.cpp gives to each tensor, for every file type and many kinds of models.

Needs `pip install llama-cpp-python gguf` (0.3.36 was used). Models are headers with tiny tensors of the right names;
`llama_model_quantize` only plans (`dry_run`), and what it plans is read from its log.

    python tests/golden/make_recipes.py
"""

from __future__ import annotations

import ctypes
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter

FILE_TYPES = [*range(4), *range(7, 33), *range(36, 39), 40, 41]
"""All but 39, which has a name and no rules."""
ROWS = 2

_lines: list[str] = []


@llama_cpp.llama_log_callback
def _log(level: int, text: bytes, user_data: Any) -> None:
    _lines.append(text.decode())


class ImatrixEntry(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("data", ctypes.POINTER(ctypes.c_float)),
        ("size", ctypes.c_size_t),
    )


class Override(ctypes.Structure):
    _fields_ = (("pattern", ctypes.c_char_p), ("type", ctypes.c_int))


def layers(n: int | range, *names: str) -> Iterator[str]:
    for i in n if isinstance(n, range) else range(n):
        for name in names:
            yield f"blk.{i}.{name}"


ATTENTION = ("attn_norm.weight", "attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_output.weight")
FFN = ("ffn_gate.weight", "ffn_up.weight", "ffn_down.weight")
EXPERTS = ("ffn_gate_inp.weight", "ffn_gate_exps.weight", "ffn_up_exps.weight", "ffn_down_exps.weight")
SHARED = ("ffn_gate_shexp.weight", "ffn_up_shexp.weight", "ffn_down_shexp.weight")
KEPT = """
position_embd token_types per_layer_model_proj altup_proj per_layer_token_embd blk.0.laurel_l blk.0.ssm_conv1d
blk.0.shortconv.conv blk.0.time_mix_w1 blk.0.time_mix_decay_w2 blk.0.time_mix_lerp_fused blk.0.attn_rel_b
blk.0.attn_q_norm blk.0.ffn_gate_inp blk.0.indexer.k_proj v.position_embd v.patch_embd v.blk.0.attn_v blk.0.inp_gate
blk.0.ffn_gate_tid2eid output_norm
"""


def model(
    arch: str,
    n_layers: int,
    heads: tuple[int, int],
    tensors: Iterator[str],
    *,
    columns: int | dict[str, int] = 256,
    tied: bool = False,
    extra: tuple[str, ...] = (),
    **keys: Any,
) -> dict[str, Any]:
    """Metadata and tensors: experts are stacks of 2 matrices, norms and biases vectors."""
    names = ["token_embd.weight", *([] if tied else ["output.weight"]), *extra, *tensors]
    wide = columns if isinstance(columns, dict) else {"": columns}

    def shape(name: str) -> list[int]:
        n = next(n for part, n in wide.items() if part in name)
        if "norm" in name or name.endswith(("bias", "sinks.weight")):
            return [2, n] if "exps.bias" in name else [n]
        return [2, ROWS, n] if "exps" in name else [ROWS, n]

    metadata = {
        "general.architecture": arch,
        f"{arch}.block_count": n_layers,
        f"{arch}.attention.head_count": heads[0],
        f"{arch}.attention.head_count_kv": heads[1],
        **{f"{arch}.{key}": value for key, value in keys.items()},
    }
    return {"metadata": metadata, "tensors": [[name, shape(name)] for name in names]}


def grouped(tensors: list[tuple[str, list[int]]]) -> list[Any]:
    """[number of layers, [name, shape] of the tensors of each], in order; one layer, if names are outside of layers."""
    by_layer: dict[str, list[Any]] = {}
    for name, shape in tensors:
        by_layer.setdefault(layer_of(name), []).append([re.sub(r"^blk\.\d+\.", "blk.{}.", name), shape])
    return [[len(list(same)), group] for group, same in groupby(by_layer.values())]


def layer_of(name: str) -> str:
    return name.split(".")[1] if name.startswith("blk.") else ""


def experts(n: int, used: int = 2) -> dict[str, int]:
    return {"expert_count": n, "expert_used_count": used, "expert_feed_forward_length": 64}


MODELS = {
    "llama, every head its own values": model("llama", 20, (8, 8), layers(20, *ATTENTION, *FFN)),
    "llama, four heads share": model("llama", 32, (32, 8), layers(32, *ATTENTION, *FFN)),
    "llama, three heads share, tied": model("llama", 30, (9, 3), layers(30, *ATTENTION, *FFN), tied=True),
    "llama 70B": model("llama", 80, (64, 8), layers(80, "attn_v.weight", "attn_output.weight", "ffn_down.weight")),
    "llama 70B, two heads share": model("llama", 80, (16, 8), layers(80, "attn_v.weight", "ffn_down.weight")),
    "llama 65B": model("llama", 80, (64, 64), layers(80, "attn_v.weight", "ffn_down.weight")),
    "qwen2 72B": model("qwen2", 80, (64, 8), layers(80, "attn_v.weight", "ffn_down.weight")),
    "qwen2": model("qwen2", 28, (12, 2), layers(28, *ATTENTION, "attn_v.bias", *FFN), tied=True),
    "mixtral": model("llama", 32, (32, 8), layers(32, *ATTENTION, *EXPERTS), **experts(8)),
    "eight experts, shared one, no sharing heads": model(
        "qwen2moe", 12, (8, 8), layers(12, *ATTENTION, *EXPERTS, *SHARED), **experts(8)
    ),
    "qwen3moe": model("qwen3moe", 24, (32, 4), layers(24, *ATTENTION, *EXPERTS), **experts(128, 8)),
    "qwen2moe": model("qwen2moe", 24, (16, 16), layers(24, *ATTENTION, *EXPERTS, *SHARED), **experts(60, 4)),
    "gemma2": model("gemma2", 26, (8, 4), layers(26, *ATTENTION, "post_attention_norm.weight", *FFN), tied=True),
    "gemma3": model("gemma3", 34, (8, 4), layers(34, *ATTENTION, *FFN), tied=True),
    "phi3": model(
        "phi3", 32, (32, 32), layers(32, "attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight")
    ),
    "gpt-oss": model(
        "gpt-oss", 24, (64, 8),
        layers(24, *ATTENTION, "attn_sinks.weight", *EXPERTS, "ffn_gate_inp.bias", "ffn_up_exps.bias"),
        **experts(32, 4),
    ),
    "deepseek2": model(
        "deepseek2", 9, (16, 16),
        iter([
            *layers(1, "attn_q.weight", "attn_kv_a_mqa.weight", "attn_kv_b.weight", "attn_output.weight", *FFN),
            *layers(range(1, 9), "attn_kv_b.weight", "attn_k_b.weight", *EXPERTS, *SHARED),
        ]),
        leading_dense_block_count=1, expert_shared_count=2, expert_weights_scale=1.0, **experts(64, 6),
        **{f"attention.{key}": 64 for key in ("q_lora_rank", "kv_lora_rank", "key_length", "value_length")},
    ),
    "falcon": model(
        "falcon", 32, (64, 8), layers(32, "attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight")
    ),
    "rows of 576": model("llama", 16, (9, 3), layers(16, *ATTENTION, *FFN), columns={"ffn_down": 1536, "": 576}),
    "rows of 576, tied": model("llama", 4, (9, 3), layers(4, *ATTENTION, *FFN), columns=576, tied=True),
    "rows of 100": model("llama", 8, (4, 1), layers(8, *ATTENTION, *FFN), columns=100),
    "rows of 384": model("llama", 8, (4, 1), layers(8, *ATTENTION, *FFN), columns=384),
    "tensors that are kept": model("llama", 2, (4, 1), (f"{name}.weight" for name in KEPT.split())),
    "one table of embeddings for every layer": model(
        "llama", 2, (4, 1), layers(2, *ATTENTION, *FFN), extra=("per_layer_token_embd.weight",)
    ),
}  # fmt: skip

_OVERRIDES = [("ffn_down", "Q8_0"), (r"blk\.[01]\.", "Q6_K"), ("attn_v", "Q5_K"), ("attn", "IQ4_XS")]
OPTIONS: list[dict[str, Any]] = [
    {"tensor_types": _OVERRIDES},
    {"tensor_types": [("token_embd", "Q5_K"), ("output", "Q4_K")]},
    {"tensor_types": [("token_embd", "Q5_K")], "embedding_format": "Q8_0"},
    {"tensor_types": [("output", "Q4_K")], "output_format": "Q5_K"},
    {"output_format": "F16"},
    {"embedding_format": "Q4_K"},
    {"output_format": "F16", "embedding_format": "IQ4_NL"},
    {"pure": True},
    {"pure": True, "output_format": "Q6_K", "tensor_types": _OVERRIDES[:1]},
    {"leave_output": True},
]
OPTION_MODELS = (
    "llama, four heads share",
    "llama, three heads share, tied",
    "mixtral",
    "one table of embeddings for every layer",
)
OPTION_TYPES = (15, 29, 7, 2, 38)


def write(path: Path, case: dict[str, Any]) -> None:
    metadata = case["metadata"]
    arch = metadata["general.architecture"]
    writer = GGUFWriter(path, arch)
    usual = {
        "context_length": 512, "embedding_length": 32 * metadata[f"{arch}.attention.head_count"],
        "feed_forward_length": 512, "vocab_size": 32,
        "rope.dimension_count": 32, "attention.sliding_window": 128, "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": 50.0, "attention.layer_norm_epsilon": 1e-5, "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.scaling.yarn_log_multiplier": 1.0,
    }  # fmt: skip
    for key, value in {**{f"{arch}.{key}": value for key, value in usual.items()}, **metadata}.items():
        if key == "general.architecture":
            continue
        (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(key, value)
    for name, shape in case["tensors"]:
        writer.add_tensor(name, np.zeros(shape, np.float32 if len(shape) == 1 else np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def plan(path: Path, file_type: int, imatrix: bool, options: dict[str, Any]) -> dict[str, str] | None:
    """Tensor to format; None where llama.cpp knows no format that fits."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.dry_run, params.nthread = file_type, True, 1
    params.allow_requantize = True
    one = (ctypes.c_float * 1)(1.0)
    entries = (ImatrixEntry * 2)(ImatrixEntry(b"none", one, 1), ImatrixEntry())
    if imatrix:
        params.imatrix = ctypes.cast(entries, type(params.imatrix))
    patterns = options.get("tensor_types", ())
    overrides = (Override * (len(patterns) + 1))(
        *(Override(p.encode(), GGMLQuantizationType[f].value) for p, f in patterns), Override()
    )
    if patterns:
        params.tt_overrides = ctypes.cast(overrides, type(params.tt_overrides))
    if "output_format" in options:
        params.output_tensor_type = GGMLQuantizationType[options["output_format"]].value
    if "embedding_format" in options:
        params.token_embedding_type = GGMLQuantizationType[options["embedding_format"]].value
    params.pure = options.get("pure", False)
    params.quantize_output_tensor = not options.get("leave_output", False)
    _lines.clear()
    if llama_cpp.llama_model_quantize(str(path).encode(), b"unused", params):
        if "no tensor type fallback" in _lines[-1]:
            return None
        sys.exit(f"llama.cpp refuses file type {file_type} of {path.stem}: {_lines[-1].strip()}")
    found = {}
    for line in re.split(r"\n", "".join(_lines)):
        m = re.match(r"\[ *\d+/ *\d+\] (\S+) +- \[[^]]*\], type = +(\w+), size = .*?(?:\((\w+)\))?$", line)
        if m:
            found[m[1]] = (m[3] or m[2]).upper()
    return found


def main() -> None:
    llama_cpp.llama_log_set(_log, None)
    letters: dict[str, str] = {}

    def packed(case: dict[str, Any], plan: dict[str, str] | None) -> str | None:
        """A letter for each tensor, by `formats`; "3*AB" is three layers (or what is in none) with the formats A, B."""
        if plan is None:
            return None
        layers: dict[str, str] = {}
        for name, _ in case["tensors"]:
            letter = letters.setdefault(plan[name], chr(ord("A") + len(letters) + 6 * (len(letters) >= 26)))
            layers[layer_of(name)] = layers.get(layer_of(name), "") + letter
        return " ".join(f"{len(list(same))}*{text}" for text, same in groupby(layers.values()))

    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for title, case in MODELS.items():
            path = Path(folder) / f"{title}.gguf"
            write(path, case)
            by_type = {}
            for file_type in FILE_TYPES:
                plans = [plan(path, file_type, imatrix, {}) for imatrix in (False, True)]
                both = [packed(case, p) for p in plans]
                by_type[file_type] = both[:1] if both[0] == both[1] else both
            options = [
                [file_type, chosen, packed(case, plan(path, file_type, False, chosen))]
                for chosen in (OPTIONS if title in OPTION_MODELS else ())
                for file_type in OPTION_TYPES
            ]
            results[title] = {**case, "tensors": grouped(case["tensors"]), "file_types": by_type, "options": options}
    out = {
        "made_by": f"tests/golden/make_recipes.py with llama-cpp-python {llama_cpp.__version__}",
        "formats": {letter: format for format, letter in letters.items()},
        "models": results,
    }
    path = Path(__file__).with_name("recipes.json")
    text = json.dumps(out, separators=(",", ":"))
    path.write_text(re.sub(r'("[^"]*":\{"metadata")', r"\n\1", text) + "\n")
    print(f"{path.name}: {len(results)} models, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
