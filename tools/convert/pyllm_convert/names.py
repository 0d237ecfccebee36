"""What a file says of its model beside hyper-parameters: name, size, licence, the sampling its makers advise."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyllm.errors import ModelError
from pyllm_convert.checkpoint import read_json

_LICENSE = re.compile(r"^license:\s*[\"']?([A-Za-z0-9._+-]{1,64})[\"']?\s*$", re.MULTILINE)
_SNAPSHOT = re.compile(r"models--(?:[^/\\]+?)--(?P<name>[^/\\]+)$")
_SAMPLING = {
    "temperature": ("temp", float),
    "top_k": ("top_k", int),
    "top_p": ("top_p", float),
    "min_p": ("min_p", float),
    "repetition_penalty": ("penalty_repeat", float),
}


def general(folder: Path, name: str | None) -> dict[str, Any]:
    """Keys of `general.*`. `name`: that of the model; None: the folder's."""
    keys: dict[str, Any] = {"general.type": "model", "general.name": name or folder_name(folder)}
    try:
        front = (folder / "README.md").read_text(encoding="utf-8", errors="replace")[:65536]
    except OSError:
        front = ""
    if front.startswith("---") and (found := _LICENSE.search(front.split("\n---", 1)[0])):
        keys["general.license"] = found[1]
    return keys | _sampling(folder / "generation_config.json")


def folder_name(folder: Path) -> str:
    """A model's name by its folder; of a snapshot in Hugging Face's cache, by the repository."""
    resolved = folder.resolve()
    if resolved.parent.name == "snapshots" and (found := _SNAPSHOT.search(resolved.parents[1].name)):
        return found["name"]
    return resolved.name or "model"


def _sampling(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        table = read_json(path)
    except ModelError:
        return {}  # advice; a model without it is whole
    keys = {}
    for key, (own, kind) in _SAMPLING.items():
        value = table.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1 << 31:
            keys[f"general.sampling.{own}"] = kind(value)
    return keys


def size_label(shapes: Mapping[str, tuple[int, ...]], n_experts: int) -> str:
    """The size as names have it: "1.5B", "135M", "8x7B" (experts x weights of a model with only one of them)."""
    total = sum(math.prod(shape) for shape in shapes.values())
    if not n_experts:
        return _rounded(total)
    experts = sum(math.prod(shape) for name, shape in shapes.items() if "_exps." in name)
    return f"{n_experts}x{_rounded(total - experts + experts // n_experts)}"


def _rounded(n: int) -> str:
    power = max(1, min(4, int(math.log10(max(n, 1)) // 3)))
    value, letter = n / 1000**power, " KMBT"[power]
    return f"{value:.1f}{letter}" if value < 9.5 else f"{value:.0f}{letter}"
