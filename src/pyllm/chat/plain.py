"""Copies of a caller's messages, tools and variables for templates: plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from typing import Any

from pyllm.errors import TemplateError


def variables_of(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Copies of variables; functions stay as they are."""
    return {name: value if callable(value) else plain(value) for name, value in variables.items()}


def plain(value: Any) -> Any:
    """A copy made of None, text, numbers, lists, tuples and dictionaries, to which dataclasses and pydantic models are
    converted.

    Raises TemplateError for other objects, whose methods are not trusted.
    """
    return mapped(value, lambda text: text)


def mapped(value: Any, change: Callable[[str], str]) -> Any:
    """A copy with every text changed; of dictionaries' keys only those that are not names, since templates look names
    up."""
    try:
        return _mapped(value, change)
    except RecursionError:
        raise TemplateError("messages, tools or variables hold themselves, or are nested too deeply") from None


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return change(str.__str__(value))
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, Mapping):
        return {_key(key, change): _mapped(entry, change) for key, entry in value.items()}
    if isinstance(value, list):
        return [_mapped(entry, change) for entry in value]
    if isinstance(value, tuple):
        return tuple(_mapped(entry, change) for entry in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _mapped(getattr(value, f.name), change) for f in dataclasses.fields(value)}
    if callable(getattr(value, "model_dump", None)):
        return _mapped(value.model_dump(), change)
    raise TemplateError(
        f"templates read text, numbers, lists and dictionaries; a {type(value).__name__} is none of these"
    )


def _key(key: Any, change: Callable[[str], str]) -> Any:
    return str.__str__(key) if isinstance(key, str) and key.isidentifier() else _mapped(key, change)


def texts_in(value: Any) -> Iterable[str]:
    """Every text in plain values, keys of dictionaries included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from texts_in(key)
            yield from texts_in(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from texts_in(entry)
