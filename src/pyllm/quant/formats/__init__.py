"""Formats, by name. Each is a module here, which registers its class; to add one, add a file (see docs/formats.md)."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from pyllm.errors import FormatError
from pyllm.quant.base import REGISTRY, QuantFormat

__all__ = ["QuantFormat", "get", "names"]


def get(name: str) -> QuantFormat:
    """The format that ggml calls `name` ("Q4_K"). Raises FormatError where pyllm has no such format."""
    _load()
    try:
        return REGISTRY[name]
    except KeyError:
        raise FormatError(f"pyllm cannot decode the format {name!r}; it can decode {', '.join(names())}") from None


def names() -> list[str]:
    """Names of all formats, in the order of their numbers in GGUF files."""
    _load()
    return sorted(REGISTRY, key=lambda name: REGISTRY[name].ggml_type)


@cache
def _load() -> None:
    for module in iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")
