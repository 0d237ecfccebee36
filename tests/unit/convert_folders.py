"""Small Hugging Face folders, written without safetensors' own package."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm_convert import Conversion

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "convert"
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "vocab_size": 16,
    "rms_norm_eps": 1e-5,
}

DTYPES = {"float32": "F32", "float16": "F16", "float64": "F64", "uint16": "BF16", "uint8": "U8", "int8": "I8"}
"""How numpy's types are named in a file; 16 unsigned bits stand for bfloat16."""


def header_of(tensors: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """The header of a file with these tensors, one after the other."""
    header, at = {}, 0
    for name, values in tensors.items():
        offsets = [at, at + values.nbytes]
        header[name] = {"dtype": DTYPES[values.dtype.name], "shape": list(values.shape), "data_offsets": offsets}
        at += values.nbytes
    return header


def file_bytes(header: Any, data: bytes) -> bytes:
    """A safetensors file with whatever header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def write_tensors(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """A safetensors file."""
    path.write_bytes(
        file_bytes(header_of(tensors), b"".join(np.ascontiguousarray(t).tobytes() for t in tensors.values()))
    )


def llama_tensors(seed: int = 0, n_layers: int = 1) -> dict[str, NDArray[Any]]:
    """Random float32 tensors that go with `LLAMA`."""
    random = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (16, 32),
        "model.norm.weight": (32,),
        "lm_head.weight": (16, 32),
    }
    for il in range(n_layers):
        for name, shape in (
            ("input_layernorm", (32,)),
            ("post_attention_layernorm", (32,)),
            ("self_attn.q_proj", (32, 32)),
            ("self_attn.k_proj", (16, 32)),
            ("self_attn.v_proj", (16, 32)),
            ("self_attn.o_proj", (32, 32)),
            ("mlp.gate_proj", (64, 32)),
            ("mlp.up_proj", (64, 32)),
            ("mlp.down_proj", (32, 64)),
        ):
            shapes[f"model.layers.{il}.{name}.weight"] = shape
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def write_folder(
    folder: Path, config: Mapping[str, Any] | None = None, tensors: Mapping[str, NDArray[Any]] | None = None
) -> Path:
    """config.json and model.safetensors."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(LLAMA if config is None else config)))
    write_tensors(folder / "model.safetensors", llama_tensors() if tensors is None else tensors)
    return folder


def write_whole_folder(path: Path, template: str) -> Path:
    """A llama of 26 thousand weights with a vocabulary of bytes and three merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<s>", "</s>", *alphabet, "he", "ll", "Ġw"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("h", "e"), ("l", "l"), ("Ġ", "w")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tensors, random = llama_tensors(), np.random.default_rng(1)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = random.standard_normal((len(vocab) + 3, 32)).astype(np.float32)
    write_folder(path, LLAMA | {"vocab_size": len(vocab) + 3}, tensors)
    tokenizer.save(str(path / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": template}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path


def keys_of(folder: Path, **options: Any) -> dict[str, Any]:
    """All metadata as plain values."""
    with Conversion(folder, tokenizer=False, **options) as model:
        return {key: value.value for key, value in model.metadata.items()}


def copy_with(case: str, folder: Path, changes: Mapping[str, Any]) -> Path:
    """A golden folder with other settings."""
    config = json.loads((GOLDEN / case / "config.json").read_text()) | dict(changes)
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    for path in (GOLDEN / case).glob("model*"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder
