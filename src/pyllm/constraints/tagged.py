"""Arguments of calls as tagged keys and values (`<parameter=days>3</parameter>`), in Lark's notation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyllm.chat.dialects.spec import KeyForm, TaggedArguments
from pyllm.constraints import schema as schemas
from pyllm.constraints.grammar import text_literal
from pyllm.constraints.rules import SPACE, Rules


class TaggedWriter:
    """Writes arguments of tools in one dialect. Texts are raw up to the tag that closes them, other values JSON."""

    def __init__(self, form: TaggedArguments, rules: Rules) -> None:
        self._form, self._rules, self._text = form, rules, rules.text

    def arguments(self, schema: Any, tool: str) -> str:
        """All arguments of a tool, in the order of its schema; empty where it has none."""
        names = schema.get("properties") if isinstance(schema, Mapping) else None
        if not isinstance(names, Mapping):
            names = {}
        if not names and isinstance(schema, Mapping) and schema.get("additionalProperties", "properties" not in schema):
            return f"({self._entry(r'/[A-Za-z0-9_.-]{1,64}/', {}, schema, f'tool {tool}')} {SPACE})*"
        required = schema.get("required", ())
        written = [
            (name in required, self._entry(self._text(str(name)), own, schema, f"tool {tool}, {name}"))
            for name, own in names.items()
        ]
        return " ".join(f"{entry} {SPACE}" if needed else f"({entry} {SPACE})?" for needed, entry in written)

    def _entry(self, name: str, own: Any, root: Mapping[str, Any], where: str) -> str:
        """A key and its value, with the tags around them."""
        own = resolved(own, root)
        raw = takes_text(own)
        kinds = ("string", None, "json") if raw else ("json", None, "string")
        form = min(self._form.forms, key=lambda form: kinds.index(form.kind))
        parts = [self._text(self._form.key_open), name, self._text(form.close)]
        for piece in form.value_open:
            parts += [SPACE, self._text(piece)]
        return " ".join([*parts, self._value(own, root, form, raw, where)])

    def _value(self, own: Any, root: Mapping[str, Any], form: KeyForm, raw: bool, where: str) -> str:
        close = self._text(form.value_close)
        values = texts_of(own)
        if values is not None:
            pad = self._text(self._form.pad)
            return f"{pad} ({' | '.join(map(text_literal, values))}) {pad} {close}"
        if raw:
            return self._rules.raw(own, form.value_close, where, self._form.pad)
        return f"{SPACE} {self._rules.json(own, root, where)} {SPACE} {close}"


def resolved(schema: Any, root: Mapping[str, Any]) -> Any:
    """A schema in place of a reference to it."""
    for _ in range(8):
        if not isinstance(schema, Mapping) or set(schema) - {"description", "title", "default"} != {"$ref"}:
            break
        schema = schemas.resolve(root, str(schema["$ref"]))
    return {} if schema is None else schema


def takes_text(schema: Any) -> bool:
    """Whether texts fit a schema."""
    if not isinstance(schema, Mapping):
        return schema is not False
    if "const" in schema:
        return isinstance(schema["const"], str)
    if isinstance(schema.get("enum"), list):
        return any(isinstance(value, str) for value in schema["enum"])
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list):
            return any(map(takes_text, schema[key]))
    kind = schema.get("type")
    return kind in (None, "string") or (isinstance(kind, list) and "string" in kind)


def texts_of(schema: Any) -> list[str] | None:
    """The texts of which a value is one, if it is one of several."""
    if not isinstance(schema, Mapping):
        return None
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(values, list) and values and all(isinstance(value, str) and value for value in values):
        return values
    return None
