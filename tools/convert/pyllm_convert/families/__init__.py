"""Families of models: config.json and tensors of transformers → metadata and tensors of GGUF.

A family is a subclass of `Family` in a module here, found by the name that config.json gives in `architectures`, in the
table `FAMILIES` of its module. Classes without an output head ("Qwen3Model") count as those with one.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pyllm.errors import ModelError
from pyllm_convert.families.base import Family

__all__ = ["Family", "family_of", "names"]


_HEADS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


@cache
def _table() -> dict[str, type[Family]]:
    table: dict[str, type[Family]] = {}
    for module in pkgutil.iter_modules(__path__):
        table |= getattr(importlib.import_module(f"{__name__}.{module.name}"), "FAMILIES", {})
    return table


def names() -> list[str]:
    """Architectures that can be converted, as config.json names them."""
    return sorted(_table())


def family_of(config: Mapping[str, Any], folder: Path | None = None) -> type[Family]:
    """The family of a model. `folder`: its folder, where other files than config.json tell what it is for.

    Raises ModelError where config.json names none that is known.
    """
    given = config.get("architectures")
    if not isinstance(given, list) or not given or not isinstance(given[0], str):
        raise ModelError("config.json names no architecture (`architectures`); it belongs to no language model")
    found = next((kind for name in _with_head(given[0]) if (kind := _table().get(name)) is not None), None)
    if found is None:
        raise ModelError(f"models of the architecture {given[0]!r} cannot be converted; known are {', '.join(names())}")
    return found.of(config, folder)


def _with_head(name: str) -> list[str]:
    """The class itself; of one without an output head, those that have one around it."""
    if not name.endswith("Model") or name in _table():
        return [name]
    stem = name.removesuffix("Model")
    return [s + head for s in (stem, stem.removesuffix("Text")) for head in _HEADS]
