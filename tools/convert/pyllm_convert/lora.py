"""LoRA adapters of the PEFT library → GGUF adapters, which `pyllm.llm.adapters` and llama.cpp apply to a model.

A folder holds adapter_config.json and adapter_model.safetensors: for a module of the model its lora_A [rank, columns]
and lora_B [rows, rank]. What the model's family does to a matrix on its way to GGUF concerns names and rows, and so is
done to lora_B alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.errors import ModelError
from pyllm.gguf import GGUFFile, GGUFWriter, TensorSpec, Value, open_gguf
from pyllm_convert import families, lazy, names
from pyllm_convert.checkpoint import read_json, text_config
from pyllm_convert.families import Family
from pyllm_convert.lazy import Lazy
from pyllm_convert.safetensors import Entry, SafetensorsFile

_HALF = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_(embedding_)?([AB])(?:\.(?!weight$)[^.]+)?(?:\.weight)?")
_TABLE = "token_embd.weight"
_KEPT = ("F32", "F16", "BF16")
_CHUNK = 1 << 20  # elements
_INITIAL = (None, True, False, "gaussian", "eva", "orthogonal")
"""Ways to begin training that leave the model's own weights as they were."""
_REFUSED = {
    "use_dora": "it scales the directions of weights (DoRA)",
    "fan_in_fan_out": "its matrices are transposed (fan_in_fan_out)",
    "use_qalora": "its inputs are pooled (QA-LoRA)",
    "use_bdlora": "its matrices are in blocks (BD-LoRA)",
    "kasa_config": "it has singular values (KaSA)",
    "lora_bias": "it trains biases (lora_bias)",
    "modules_to_save": "it replaces whole modules (modules_to_save)",
    "layer_replication": "it repeats layers (layer_replication)",
    "alora_invocation_tokens": "it begins to work at certain tokens only (activated LoRA)",
    "trainable_token_indices": "it replaces tokens (trainable_token_indices)",
}


@dataclass(frozen=True, slots=True)
class AdapterSummary:
    """What was written: `tensors` are pairs of name and shape, `alpha` is `adapter.lora.alpha`."""

    arch: str
    alpha: float
    tensors: tuple[tuple[str, tuple[int, ...]], ...]
    n_bytes: int


@dataclass(frozen=True, slots=True)
class _Base:
    """The model that an adapter is for. `shapes`: those of its matrices, None where only config.json is known."""

    family: Family
    shapes: Mapping[str, tuple[int, ...]] | None


def convert_adapter(folder: Path, target: Path, base: Path, *, overwrite: bool = False) -> AdapterSummary:
    """Write the adapter in `folder` to the GGUF file `target`.

    `base` is the model that it was trained for: a folder with config.json, or a GGUF file. Scales that differ from
    module to module are multiplied into lora_b. Raises ModelError: no LoRA adapter, one that changes more than
    products of matrices, one for another model; GGUFError where `target` cannot be written.
    """
    if not (folder / "adapter_config.json").is_file():
        raise ModelError(f"{folder} has no adapter_config.json, so it is no adapter of PEFT")
    if target.exists() and base.exists() and target.samefile(base):
        raise ModelError(f"{target} is the model that the adapter is for; another target is needed")
    config = read_json(folder / "adapter_config.json")
    _check(config)
    alpha = _number(config.get("lora_alpha"), "lora_alpha")
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise ModelError(
            f"{folder} has no adapter_model.safetensors; adapters saved as Python pickles (.bin) can run any code and "
            "are not read, write them again with save_pretrained"
        )
    model = _base(base)
    file = SafetensorsFile(weights)
    try:
        halves = _halves(file)
        tensors = dict(sorted(_placed(model, halves, _scales(config, alpha)).items()))
        specs = [TensorSpec(name, t.shape, t.dtype if t.dtype in _KEPT else "F32") for name, t in tensors.items()]
        metadata = {
            "general.type": "adapter",
            "general.architecture": model.family.arch,
            "general.name": names.folder_name(folder),
            "adapter.type": "lora",
            "adapter.lora.alpha": alpha,
        }
        values = {key: Value.of(value) for key, value in metadata.items()}
        with GGUFWriter(target, values, specs, overwrite=overwrite) as writer:
            for spec, t in zip(specs, tensors.values(), strict=True):
                for chunk in _chunks(t, spec.format):
                    writer.write(chunk)
    finally:
        file.close()
    shapes = tuple((spec.name, spec.shape) for spec in specs)
    return AdapterSummary(model.family.arch, alpha, shapes, sum(spec.n_bytes for spec in specs))


def _check(config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ModelError(f"adapter_config.json describes an adapter of the type {kind!r}; LORA can be converted")
    for key, what in _REFUSED.items():
        if config.get(key):
            raise ModelError(f"the adapter cannot be converted: {what}, which GGUF adapters have no place for")
    initial = config.get("init_lora_weights")
    if initial not in _INITIAL:
        raise ModelError(
            f"the adapter was trained on changed weights (init_lora_weights {initial!r}); save it with PEFT's "
            "path_initial_model_for_weight_conversion, which gives one for the original model"
        )


def _scales(config: Mapping[str, Any], alpha: float) -> Callable[[str, int], float]:
    """By module and rank: what lora_b is multiplied by beside alpha / rank."""
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise ModelError("adapter_config.json's alpha_pattern is no table")
    root = bool(config.get("use_rslora"))

    def scale(module: str, rank: int) -> float:
        own = next((value for key, value in patterns.items() if _names(key, module)), alpha)
        return _number(own, "alpha_pattern") / alpha * (math.sqrt(rank) if root else 1.0)

    return scale


def _names(key: str, module: str) -> bool:
    """Whether a key of alpha_pattern means a module: its whole name or, unless it begins with "^", the end of it."""
    name = key.removeprefix("^").removesuffix("$").replace("\\.", ".")
    if not re.fullmatch(r"[\w.-]+", name):
        raise ModelError(f"adapter_config.json's alpha_pattern has the key {key!r}; names of modules can be converted")
    return module == name or (not key.startswith("^") and module.endswith(f".{name}"))


def _number(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise ModelError(f"adapter_config.json's {key} is {value!r}, not a positive number")
    return float(value)


# --- the model


def _base(path: Path) -> _Base:
    if path.is_dir():
        raw = read_json(path / "config.json")
        return _Base(families.family_of(raw)(text_config(raw)), None)
    if not path.is_file():
        raise ModelError(f"there is no model {path}; --base takes its folder, with config.json, or its GGUF file")
    with open_gguf(path) as file:
        return _Base(_family_of_file(file), {name: tensor.shape for name, tensor in file.tensors.items()})


def _family_of_file(file: GGUFFile) -> Family:
    """The family of a GGUF file, with as many settings as names and rows depend on."""
    arch = file.metadata.get("general.architecture")
    kinds = [kind for name in families.names() if (kind := families.family_of({"architectures": [name]})).arch == arch]
    if not kinds:
        raise ModelError(f"{file.path} is of the architecture {arch!r}, for which adapters cannot be converted")
    keys = {
        "num_hidden_layers": "block_count",
        "hidden_size": "embedding_length",
        "num_attention_heads": "attention.head_count",
        "num_key_value_heads": "attention.head_count_kv",
        "head_dim": "attention.key_length",
        "num_local_experts": "expert_count",
        "linear_num_key_heads": "ssm.group_count",
        "linear_num_value_heads": "ssm.time_step_rank",
        "linear_key_head_dim": "ssm.state_size",
        "linear_value_head_dim": "ssm.state_size",
    }
    config: dict[str, Any] = {"tie_word_embeddings": "output.weight" not in file.tensors}
    for key, own in keys.items():
        value = file.metadata.get(f"{arch}.{own}")
        if isinstance(value, np.ndarray):
            value = value.tolist()[0] if value.size and (value == value[0]).all() else None
        config[key] = value or None
    return kinds[0](config)


# --- tensors


def _halves(file: SafetensorsFile) -> dict[tuple[str, bool], dict[str, Lazy]]:
    """lora_A and lora_B by module, and whether they are of a token table."""
    found: dict[tuple[str, bool], dict[str, Lazy]] = {}
    for name, entry in file.entries.items():
        if ".base_layer." in name:
            continue  # the model's own weights, saved along where token tables are adapted
        half = _HALF.fullmatch(name)
        if half is None:
            raise ModelError(f"the adapter has the tensor {name}, which is neither lora_A nor lora_B of a module")
        stored = _stored(file, entry)
        if ".experts." in name:
            raise ModelError(f"the adapter has {name}; adapters of experts cannot be converted")
        pair = found.setdefault((half[1], bool(half[2])), {})
        if half[3] in pair:
            raise ModelError(f"the adapter has {pair[half[3]].name} and {name}; it holds more than one adapter")
        pair[half[3]] = lazy.require(stored, 2)
    if not found:
        raise ModelError(f"{file.path} holds no tensors")
    return found


def _stored(file: SafetensorsFile, entry: Entry) -> Lazy:
    n = entry.shape[-1] if entry.shape else 1
    return Lazy(
        entry.name,
        entry.shape,
        entry.dtype,
        lambda start, stop: file.read(entry, start * n, stop * n).reshape(stop - start, n),
    )


def _times(t: Lazy, factor: float) -> Lazy:
    if factor == 1.0:
        return t
    return replace(t, dtype="F32", rows=lambda start, stop: t.floats(start, stop) * np.float32(factor))


def _placed(
    model: _Base, halves: Mapping[tuple[str, bool], Mapping[str, Lazy]], scale: Callable[[str, int], float]
) -> dict[str, Lazy]:
    """lora_a and lora_b by GGUF's names."""
    placed: dict[str, Lazy] = {}
    for (module, is_table), pair in halves.items():
        if len(pair) < 2:
            raise ModelError(f"the adapter has only one of lora_A and lora_B of {module}")
        a, b = pair["A"], pair["B"]
        rank = a.shape[0]
        if rank < 1 or b.shape[1] != rank:
            raise ModelError(f"{a.name} {list(a.shape)} and {b.name} {list(b.shape)} do not go together")
        b = _times(b, scale(module, rank))
        where = dict(model.family.place(f"{module}.weight", b))
        if not where:
            raise ModelError(
                f"{module}, which the adapter is for, is no matrix of its own in a GGUF file of this model"
            )
        for name, rows in where.items():
            if is_table != (name == _TABLE):
                raise ModelError(f"{a.name} does not go with {name}: token tables have lora_embedding_A and _B")
            _check_shape(model, name, (a.shape[1], rows.shape[0]) if is_table else (rows.shape[0], a.shape[1]))
            order = model.family.column_order(name)
            placed[f"{name}.lora_a"] = (
                _transposed(a) if is_table else a if order is None else lazy.reordered_columns(a, order)
            )
            placed[f"{name}.lora_b"] = rows
    return placed


def _check_shape(model: _Base, name: str, shape: tuple[int, int]) -> None:
    if model.shapes is None:
        return
    if name not in model.shapes:
        raise ModelError(f"the model has no matrix {name}, which the adapter is for; another --base is needed")
    if model.shapes[name] != shape:
        raise ModelError(
            f"the adapter is for a {name} of {list(shape)}, the model's is {list(model.shapes[name])}; another --base "
            "is needed"
        )


def _transposed(t: Lazy) -> Lazy:
    def rows(start: int, stop: int) -> NDArray[Any]:
        return t.rows(0, t.shape[0])[:, start:stop].T

    return replace(t, shape=(t.shape[1], t.shape[0]), rows=rows)


def _chunks(t: Lazy, format: str) -> Iterator[NDArray[np.uint8]]:
    step = max(1, _CHUNK // max(1, t.n_columns))
    for start in range(0, t.n_rows, step):
        stop = min(start + step, t.n_rows)
        rows = t.rows(start, stop) if t.dtype == format else t.floats(start, stop)
        yield np.ascontiguousarray(rows).view(np.uint8).reshape(-1)
