"""Arguments of calls as nested tags (`<city>Paris</city>`, `<item>…</item>`), in Lark's notation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyllm.chat.dialects.spec import NestedBody
from pyllm.constraints import schema as schemas
from pyllm.constraints.grammar import text_literal
from pyllm.constraints.rules import SPACE, Rules
from pyllm.constraints.tagged import takes_text, texts_of

_SAID = {"title", "description", "default"}
_OBJECT = {"type", "properties", "required", "additionalProperties", *_SAID}
_ARRAY = {"type", "items", "minItems", "maxItems", *_SAID}


class NestedWriter:
    """Writes calls of tools in one dialect. Texts are raw, and values that no tags are made for are JSON."""

    def __init__(self, body: NestedBody, rules: Rules) -> None:
        self._body, self._rules = body, rules
        self._references: dict[tuple[int, str], str] = {}
        self._roots: list[Any] = []  # kept, so that no other one has its id

    def call(self, name: str, schema: Any) -> str:
        """A call of a tool, in the order of its schema."""
        self._roots.append(schema)
        root = schema if isinstance(schema, Mapping) else {}
        where = f"tool {name}"
        if not root.get("properties") and root.get("additionalProperties", "properties" not in root):
            self._rules.warnings.append(f"{where}: it is called without arguments, as its schema names none")
        written = [self._rules.text(name + self._body.after_name)]
        for needed, tag in self._properties(root, root, where):
            written.append(f"{tag} {SPACE}" if needed else f"({tag} {SPACE})?")
        return " ".join(written)

    def _properties(self, schema: Mapping[str, Any], root: Mapping[str, Any], where: str) -> list[tuple[bool, str]]:
        names = schema.get("properties", {})
        required = schema.get("required", ())
        return [
            (name in required, self._rules.rule("tag", self._tag(name, own, root, f"{where}, {name}")))
            for name, own in (names.items() if isinstance(names, Mapping) else ())
        ]

    def _tag(self, name: str, schema: Any, root: Mapping[str, Any], where: str) -> str:
        """A value with its tags."""
        begin, end = f"{self._body.mark}<{name}>", f"{self._body.mark}</{name}>"
        return f"{self._rules.text(begin)} {self._value(schema, root, end, where)}"

    def _value(self, schema: Any, root: Mapping[str, Any], end: str, where: str) -> str:
        """A value up to its end, which is written too."""
        close = self._rules.text(end)
        if isinstance(schema, Mapping) and "$ref" in schema and not schema.keys() - {"$ref", *_SAID}:
            place = (id(root), f"{schema['$ref']} {end}")
            if place not in self._references:
                name = self._references[place] = self._rules.reserve("ref")
                self._rules.define(name, self._value(schemas.resolve(root, str(schema["$ref"])), root, end, where))
            return self._references[place]
        if (values := texts_of(schema)) is not None:
            return f"({' | '.join(map(text_literal, values))}) {close}"
        if takes_text(schema):
            # No mark within it, as any other tag would be part of the value.
            tag = text_literal(end.removeprefix(self._body.mark))
            return f"{self._rules.raw(schema, self._body.mark, where)} {tag}"
        if isinstance(schema, Mapping) and self._has_tags(schema):
            tags, may_miss = self._rules.entries(self._properties(schema, root, where), SPACE)
            value = f'({tags} | "{{}}")' if may_miss else tags
        elif isinstance(schema, Mapping) and self._is_listed(schema):
            low, high = schema.get("minItems", 0), schema.get("maxItems", "")
            item = self._rules.rule("tag", self._tag(self._body.item, schema["items"], root, where))
            items = f"({item} {SPACE}){{{max(low, 1)},{high}}}"
            value = items if low else f'({items} | "[]")'
        else:
            value = self._rules.json(schema, root, where)
        return f"{SPACE} {value} {SPACE} {close}"

    @staticmethod
    def _has_tags(schema: Mapping[str, Any]) -> bool:
        """Whether an object is written as tags: with names that are known, and nothing said of them together."""
        names = schema.get("properties")
        return (
            schema.get("type") == "object"
            and isinstance(names, Mapping)
            and bool(names)
            and schema.keys() <= _OBJECT
            and not schema.get("additionalProperties")
            and all(name in names for name in schema.get("required", ()))
        )

    @staticmethod
    def _is_listed(schema: Mapping[str, Any]) -> bool:
        return (
            schema.get("type") == "array"
            and isinstance(schema.get("items"), Mapping)
            and schema.keys() <= _ARRAY
            and schema.get("maxItems", 1) >= 1
        )
