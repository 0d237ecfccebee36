"""Dataclasses and TypedDicts: from a class to the JSON schema of its values, and from a JSON value to one of them."""

from __future__ import annotations

import enum
from collections import abc
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    Required,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from pyllm.errors import RequestError

_PLAIN = {str: "string", bool: "boolean", int: "integer", float: "number", NoneType: "null"}
_LISTS = (list, abc.Sequence, abc.Iterable, abc.Collection, set, frozenset)
_OBJECTS = (dict, abc.Mapping, abc.MutableMapping)


def schema_of(kind: Any) -> dict[str, Any]:
    """JSON schema of a dataclass or TypedDict, with what its fields refer to in `$defs`.

    Fields with a default are optional. Raises RequestError for types that JSON has no values for.
    """
    definitions: dict[str, Any] = {}
    names: dict[Any, str] = {}
    found = _schema(kind, kind.__name__, names, definitions)
    return {**found, "$defs": definitions}


def value_of(kind: Any, value: Any) -> Any:
    """A JSON value that fits `schema_of(kind)` as a value of that type."""
    kind = _bare(kind)
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return value_of(next(part for part in parts if _fits(part, value)), value)
    if isinstance(kind, type) and is_dataclass(kind):
        hints = _hints(kind)
        return kind(**{name: value_of(hints[name], entry) for name, entry in value.items()})
    if is_typeddict(kind):
        hints = _hints(kind)
        return {name: value_of(hints[name], entry) for name, entry in value.items()}
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind(value)
    if origin is tuple or kind is tuple:
        inner = parts[:1] * len(value) if parts[1:] == (...,) else parts or (Any,) * len(value)
        return tuple(value_of(part, entry) for part, entry in zip(inner, value, strict=True))
    if (origin or kind) in _LISTS:
        entries = [value_of(parts[0] if parts else Any, entry) for entry in value]
        return (origin or kind)(entries) if (origin or kind) in (set, frozenset) else entries
    if (origin or kind) in _OBJECTS:
        return {name: value_of(parts[1] if parts else Any, entry) for name, entry in value.items()}
    return float(value) if kind is float else value


def _schema(kind: Any, where: str, names: dict[Any, str], definitions: dict[str, Any]) -> dict[str, Any]:
    kind = _bare(kind)
    origin, parts = get_origin(kind), get_args(kind)

    def inner(part: Any, suffix: str = "") -> dict[str, Any]:
        return _schema(part, where + suffix, names, definitions)

    if kind in (Any, object):
        return {}
    if kind in _PLAIN or kind is None:
        return {"type": _PLAIN.get(kind, "null")}
    if origin is Literal:
        return {"enum": list(parts)}
    if origin in (Union, UnionType):
        return {"anyOf": [inner(part) for part in parts]}
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return {"enum": [member.value for member in kind]}
    if is_dataclass(kind) or is_typeddict(kind):
        return _reference(kind, where, names, definitions)
    if origin is tuple and parts[1:] != (...,):
        entries = [inner(part, f"[{i}]") for i, part in enumerate(parts)]
        return {"type": "array", "prefixItems": entries, "items": False, "minItems": len(parts), "maxItems": len(parts)}
    if (origin or kind) in _LISTS or (origin or kind) is tuple:
        return {"type": "array", "items": inner(parts[0], "[]") if parts else {}}
    if (origin or kind) in _OBJECTS and (not parts or parts[0] is str):
        return {"type": "object", "additionalProperties": inner(parts[1], "{}") if parts else True}
    raise RequestError(
        f"{where} is of a type that has no JSON schema, {getattr(kind, '__name__', kind)}; a dataclass may have texts, "
        "numbers, lists, dictionaries, enums, Literal, Optional and other dataclasses"
    )


def _reference(kind: Any, where: str, names: dict[Any, str], definitions: dict[str, Any]) -> dict[str, Any]:
    """A reference to the definition of a class with fields; classes may refer to themselves."""
    if kind not in names:
        name = kind.__name__ if kind.__name__ not in definitions else f"{kind.__name__}{len(names)}"
        names[kind] = name
        definitions[name] = {}
        hints = _hints(kind)
        if is_typeddict(kind):
            wanted, required = hints, [name for name, hint in hints.items() if _required(kind, name, hint)]
        else:
            own = [field for field in fields(kind) if field.init]
            wanted = {field.name: hints[field.name] for field in own}
            required = [f.name for f in own if f.default is MISSING and f.default_factory is MISSING]
        definitions[name] |= {
            "type": "object",
            "properties": {n: _schema(hint, f"{kind.__name__}.{n}", names, definitions) for n, hint in wanted.items()},
            "required": required,
            "additionalProperties": False,
        }
    return {"$ref": f"#/$defs/{names[kind]}"}


def _hints(kind: Any) -> dict[str, Any]:
    try:
        return get_type_hints(kind, include_extras=True)
    except NameError as error:
        raise RequestError(f"a type of {kind.__name__} is not found where it is defined; {error}") from None


def _required(kind: Any, name: str, hint: Any) -> bool:
    # Of annotations that are texts, the class itself does not know which keys are not required.
    origin = get_origin(hint)
    return origin is Required or (origin is not NotRequired and name in kind.__required_keys__)


def _bare(kind: Any) -> Any:
    """A type without Annotated, Required and NotRequired around it."""
    while get_origin(kind) in (Annotated, Required, NotRequired):
        kind = get_args(kind)[0]
    return kind


def _fits(kind: Any, value: Any) -> bool:
    """Whether a JSON value may be of a type, as far as the members of a union have to be told apart."""
    kind = _bare(kind)
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_fits(part, value) for part in parts)
    if origin is Literal:
        return any(value == part and type(value) is type(part) for part in parts)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return any(value == member.value for member in kind)
    if is_dataclass(kind) or is_typeddict(kind):
        schema = schema_of(kind)["$defs"][kind.__name__]
        return (
            isinstance(value, dict)
            and schema["properties"].keys() >= value.keys() >= set(schema["required"])
            and all(_fits(hint, value[n]) for n, hint in _hints(kind).items() if n in value)
        )
    if kind in (Any, object):
        return True
    if kind in (bool, str, NoneType):
        return type(value) is kind
    if kind in (int, float):
        return type(value) is int or (kind is float and type(value) is float)
    outer = origin or kind
    if outer in _OBJECTS:
        return isinstance(value, dict) and all(_fits(parts[1], entry) for entry in value.values() if parts)
    if outer is tuple and parts and parts[1:] != (...,):
        return isinstance(value, list) and len(value) == len(parts) and all(map(_fits, parts, value))
    return isinstance(value, list) and all(_fits(parts[0], entry) for entry in value if parts)
