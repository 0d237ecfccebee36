"""Raw text to values, by a tool's JSON schema."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pyllm.chat.dialects.literals import literal

_ALL = frozenset({"string", "integer", "number", "boolean", "object", "array", "null"})
_MAX_DEPTH = 8
"""References, and unions, followed into each other."""
_PYTHON = {str: "string", bool: "boolean", int: "integer", float: "number", dict: "object", list: "array"}


def schemas_of(tools: Sequence[Mapping[str, Any]] | None) -> dict[str, Mapping[str, Any]]:
    """The schema of each tool's arguments, by its name; tools in OpenAI's form or the function alone."""
    found: dict[str, Mapping[str, Any]] = {}
    for tool in tools or ():
        inner = tool.get("function", tool)
        if isinstance(inner, Mapping) and isinstance(inner.get("name"), str):
            schema = inner.get("parameters", inner.get("input_schema"))
            found[inner["name"]] = schema if isinstance(schema, Mapping) else {}
    return found


def kinds_of(schema: Mapping[str, Any] | None, key: str) -> frozenset[str] | None:
    """The types that a schema allows for an argument; None where it doesn't say."""
    if schema is None:
        return None
    properties = schema.get("properties")
    return kinds_in(properties.get(key), schema) if isinstance(properties, Mapping) else None


def kinds_in(entry: Any, root: Mapping[str, Any], depth: int = 0) -> frozenset[str] | None:
    """The types that a schema within `root` allows; None where it doesn't say."""
    if not isinstance(entry, Mapping) or depth > _MAX_DEPTH:
        return None
    if "$ref" in entry:
        return kinds_in(resolved(entry, root), root, depth + 1)
    kind = entry.get("type")
    if isinstance(kind, str):
        return frozenset({kind} | ({"null"} if entry.get("nullable") is True else set()))
    if isinstance(kind, list | tuple):
        return frozenset(k for k in kind if isinstance(k, str))
    if isinstance(values := entry.get("enum"), list | tuple):
        return frozenset(map(kind_of, values))
    if "const" in entry:
        return frozenset({kind_of(entry["const"])})
    for word in ("anyOf", "oneOf", "allOf"):
        if isinstance(entry.get(word), list | tuple):
            each = [kinds_in(e, root, depth + 1) for e in entry[word]]
            return frozenset().union(*(_ALL if e is None else e for e in each)) if word != "allOf" else each[0]
    if "properties" in entry:
        return frozenset({"object"})
    return frozenset({"array"}) if "items" in entry else None


def resolved(entry: Any, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """A schema within `root` in place of references to it; an empty one for what is none."""
    for _ in range(_MAX_DEPTH):
        if not isinstance(entry, Mapping) or not isinstance(ref := entry.get("$ref"), str):
            break
        entry = root
        for part in ref.removeprefix("#").removeprefix("/").split("/") if ref != "#" else ():
            entry = entry.get(part) if isinstance(entry, Mapping) else None
    return entry if isinstance(entry, Mapping) and "$ref" not in entry else {}


def kind_of(value: Any) -> str:
    """The JSON type of a value."""
    return _PYTHON.get(type(value), "null")


def typed(text: str, kinds: frozenset[str] | None) -> Any:
    """The value that raw text stands for.

    Text, where only strings are allowed or nothing else fits. Without a schema, what reads as JSON and is no string
    counts as what it reads as.
    """
    if kinds == {"string"}:
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        if kinds is None:
            return text
        try:
            value = literal(text)
        except (ValueError, RecursionError):
            return text
    if kinds is None:
        return text if isinstance(value, str) else value
    kind = kind_of(value)
    if kind in kinds or (kind == "integer" and "number" in kinds):
        return value
    if kind == "number" and "integer" in kinds and value.is_integer():
        return int(value)
    return text if "string" in kinds or kind == "string" else value
