"""What sentence-transformers puts around a transformer: pooling, dense layers, prompts (modules.json)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyllm.errors import ModelError
from pyllm_convert import lazy
from pyllm_convert.checkpoint import Checkpoint, read_json, read_list
from pyllm_convert.lazy import Lazy

MEAN, CLS, LAST, RANK = 1, 2, 3, 4
"""Kinds of pooling, by their numbers in GGUF."""
_MODES = {"mean": MEAN, "mean_tokens": MEAN, "cls": CLS, "cls_token": CLS, "lasttoken": LAST}
_MODE = "pooling_mode_"
_DENSE_NAMES = ("dense_2", "dense_3")
_IDENTITY = "torch.nn.modules.linear.Identity"
_PROMPTS = "config_sentence_transformers.json"


@dataclass(slots=True)
class Surroundings:
    """Metadata and tensors of what surrounds a transformer."""

    keys: dict[str, Any] = field(default_factory=dict)
    """Metadata without the architecture's prefix."""
    prompts: dict[str, str] = field(default_factory=dict)
    """Metadata `sentence_transformers.*`: texts that are put before others."""
    tensors: dict[str, Lazy] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def surroundings(checkpoint: Checkpoint, arch: str) -> Surroundings:
    """Read modules.json, the modules' folders and the prompts, as far as they are there.

    Raises ModelError: damaged files, modules that GGUF has no place for.
    """
    found = Surroundings()
    path = checkpoint.folder / "modules.json"
    for module in read_list(path) if path.is_file() else []:
        if not isinstance(module, dict) or not isinstance(module.get("type"), str):
            raise ModelError(f"{path} is no list of modules")
        kind = module["type"].rpartition(".")[2]
        if kind in ("Pooling", "Dense"):
            name = _folder_name(path, module.get("path"))
            settings = read_json(checkpoint.folder / name / "config.json")
            if kind == "Pooling":
                found.keys["pooling_type"] = _pooling(name, settings)
            else:
                _add_dense(found, name, settings, checkpoint, arch)
        elif kind not in ("Transformer", "Normalize", "Dropout"):
            raise ModelError(f"the module {kind} of modules.json cannot be converted; known are Pooling and Dense")
    found.prompts = _prompts(checkpoint.folder / _PROMPTS)
    return found


def _folder_name(path: Path, name: Any) -> str:
    if not isinstance(name, str) or not name.isprintable() or Path(name).name != name or any(c in name for c in "/\\:"):
        raise ModelError(f"{path} names the folder {name!r}; only folders beside it are read")
    return name


def _pooling(name: str, settings: dict[str, Any]) -> int:
    mode = settings.get("pooling_mode")
    modes = mode if isinstance(mode, list) else [mode]
    if mode is None:
        modes = [key.removeprefix(_MODE) for key, on in settings.items() if key.startswith(_MODE) and on is True]
    if len(modes) != 1 or modes[0] not in _MODES:
        said = " and ".join(map(str, modes)) or "nothing"
        raise ModelError(f"{name} pools by {said}; a file can say the mean, the first or the last token")
    return _MODES[modes[0]]


def _add_dense(found: Surroundings, name: str, settings: dict[str, Any], checkpoint: Checkpoint, arch: str) -> None:
    n = len(found.tensors)
    used = [new for new in _DENSE_NAMES if f"{new}.weight" in found.tensors]
    if len(used) == len(_DENSE_NAMES):
        raise ModelError(f"{name} is a third dense layer; a file has places for two")
    if (activation := settings.get("activation_function", _IDENTITY)) != _IDENTITY:
        raise ModelError(f"{name} has the activation {activation!r}; dense layers of files have none")
    new = _DENSE_NAMES[len(used)]
    for stored, t in checkpoint.module(name).items():
        part = {"linear.weight": "weight", "linear.bias": "bias"}.get(stored)
        if part is None:
            raise ModelError(f"tensor {stored} of {name} is no part of a dense layer")
        found.tensors[f"{new}.{part}"] = lazy.require(t, 2 if part == "weight" else 1)
    if f"{new}.weight" not in found.tensors:
        raise ModelError(f"{name} has no tensor linear.weight")
    n_out, n_in = found.tensors[f"{new}.weight"].shape
    found.keys |= {f"{new}_feat_in": n_in, f"{new}_feat_out": n_out}
    if arch != "gemma-embedding" or len(found.tensors) - n > 1:
        found.notes.append(f"llama.cpp reads no dense layer like {name} from {arch} files")


def _prompts(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    settings = read_json(path)
    prompts = settings.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise ModelError(f"{path} has prompts that are no table of texts")
    keys = {f"sentence_transformers.prompt.{name}": text for name, text in prompts.items()}
    default = settings.get("default_prompt_name")
    if default is not None:
        if default not in prompts:
            raise ModelError(f"{path} has no prompt {default!r}, which it names as the default")
        keys["sentence_transformers.default_prompt_name"] = default
    return keys
