"""Calls and their values in a language's own literals (`f(a=1, b="x")`, `call:f{a:1}`), in Lark's notation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyllm.chat.dialects.literals import NAME, value_text
from pyllm.chat.dialects.spec import LiteralBody
from pyllm.chat.dialects.typed import kind_of
from pyllm.constraints import schema as schemas
from pyllm.constraints.grammar import text_literal
from pyllm.constraints.rules import SPACE, Rules, several
from pyllm.errors import RequestError

_NOT_WRITTEN = {
    "allOf", "not", "if", "then", "else", "contains", "minContains", "maxContains", "uniqueItems", "additionalItems",
    "unevaluatedItems", "patternProperties", "propertyNames", "minProperties", "maxProperties", "dependentRequired",
    "dependentSchemas", "dependencies", "unevaluatedProperties", "$dynamicRef", "$recursiveRef",
}  # fmt: skip
"""Keywords of schemas whose values are written as JSON, which readers of literals read too."""
_OF_TEXTS = ("pattern", "format", "minLength", "maxLength")
_OF_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_KINDS = ("string", "number", "boolean", "null", "array", "object")
_CONST = ("const", "enum")
_UNIONS = ("anyOf", "oneOf")
_PLAIN_KEY = "/[A-Za-z_][A-Za-z0-9_]{0,63}/"
_QUOTED_KEY = r'/[^"\\\x00-\x1f]{1,64}/'


class LiteralWriter:
    """Writes calls of tools in one dialect. Values that no rule is made for are JSON."""

    def __init__(self, body: LiteralBody, rules: Rules) -> None:
        self._body, self._rules, self._text = body, rules, rules.text
        self._references: dict[tuple[int, str], str] = {}
        self._roots: list[Any] = []  # kept, so that no other one has its id

    def call(self, name: str, schema: Any, *, strict: bool) -> str:
        """A call of a tool. Raises RequestError where `strict` and the arguments themselves cannot be held."""
        self._roots.append(schema)
        body, where = self._body, f"tool {name}"
        before = self._text("".join(body.before) + name)
        root = schema if isinstance(schema, Mapping) else {}
        own = self._target(root, root)
        beyond = sorted(key for key in own if key in _NOT_WRITTEN or key in (*_CONST, *_UNIONS, "$ref"))
        if beyond and (body.open, body.close, body.assign) == ("{", "}", ":"):
            return f"{before} {self._rules.json(schema, root, where)}"
        if beyond and strict:
            raise RequestError(f"{where}: {beyond[0]} cannot be held in the form of this model's calls")
        if beyond:
            self._rules.warnings.append(f"{where}: not held: {beyond[0]}, in the form of this model's calls")
        entries = self._entries(own, root, body.assign, plain=True, where=where)
        return f"{before} {self._text(body.open)} {entries} {self._text(body.close)}"

    # --- values

    def _value(self, schema: Any, root: Mapping[str, Any], where: str) -> str:
        if schema is True:
            return self._any()
        if not isinstance(schema, Mapping):
            return self._rules.json(schema, root, where)
        if "$ref" in schema:
            return self._reference(schema, root, where)
        if _NOT_WRITTEN & schema.keys():
            return self._rules.json(schema, root, where)
        kinds = _kinds_of(schema)
        for key in _CONST:
            if key in schema:
                values = [schema[key]] if key == "const" else schema[key]
                fitting = [value for value in values if _is_one_of(value, kinds)]
                if not fitting or any(word in schema for word in (*_OF_TEXTS, *_OF_NUMBERS, *_UNIONS)):
                    return self._rules.json(schema, root, where)
                return self._either([self._constant(value) for value in fitting])
        for key in _UNIONS:
            if key in schema:
                if "type" in schema or "properties" in schema:
                    return self._rules.json(schema, root, where)
                return self._either([self._value(option, root, where) for option in schema[key]])
        if kinds is None:
            bounded = any(word in schema for word in (*_OF_TEXTS, *_OF_NUMBERS))
            return self._rules.json(schema, root, where) if bounded else self._any()
        return self._either([self._of_kind(kind, schema, root, where) for kind in kinds])

    def _of_kind(self, kind: str, schema: Mapping[str, Any], root: Mapping[str, Any], where: str) -> str:
        true, false, null = self._body.words
        if kind == "boolean":
            return f"({text_literal(true)} | {text_literal(false)})"
        if kind == "null":
            return text_literal(null)
        if kind == "array":
            return self._array(schema, root, where)
        if kind == "object":
            names, required = schema.get("properties", {}), schema.get("required", ())
            if any(name not in names for name in required):
                return self._rules.json(schema, root, where)
            entries = self._entries(schema, root, ":", plain=self._body.plain_keys, where=where)
            return self._rules.rule("object", f'"{{" {entries} "}}"')
        if kind == "string":
            return self._string({key: schema[key] for key in _OF_TEXTS if key in schema}, root, where)
        return self._rules.json(
            {"type": kind, **{key: schema[key] for key in _OF_NUMBERS if key in schema}}, root, where
        )

    def _string(self, bounds: Mapping[str, Any], root: Mapping[str, Any], where: str) -> str:
        quote = self._body.quotes[0]
        if len(quote) == 1 or "format" in bounds:
            return self._rules.json({"type": "string", **bounds}, root, where)
        return f"{self._text(quote)} {self._rules.raw(bounds, quote, where)}"

    def _array(self, schema: Mapping[str, Any], root: Mapping[str, Any], where: str) -> str:
        first, items = schema.get("prefixItems", ()), schema.get("items", True)
        low, high = schema.get("minItems", 0), schema.get("maxItems")
        if isinstance(items, list) or low < len(first) or (high is not None and high < max(low, 1)):
            return self._rules.json(schema, root, where)
        parts = [self._value(entry, root, where) for entry in first]
        n_first = len(parts)
        if items is not False and high != n_first:
            more = several(
                self._value(items, root, where),
                self._comma,
                None if high is None else high - n_first,
                max(1, low - n_first),
            )
            parts.append(more)
        may_end = len(parts) > n_first and low <= n_first
        fixed, rest = f" {self._comma} ".join(parts[:n_first]), " ".join(parts[n_first:])
        if fixed and rest:
            rest = f"{self._comma} {rest}"
        return self._rules.rule("array", f'"[" {fixed} {f"({rest})?" if may_end else rest} "]"')

    def _entries(
        self, schema: Mapping[str, Any], root: Mapping[str, Any], assign: str, *, plain: bool, where: str
    ) -> str:
        """Keys and values in the order of a schema, then those that it doesn't name, if it allows them."""
        names = schema.get("properties", {})
        extra = schema.get("additionalProperties", "properties" not in schema)
        required = schema.get("required", ())
        made = []
        for name, own in names.items():
            value = self._value(own, root, f"{where}, {name}")
            key = text_literal(name) if plain and NAME.fullmatch(name) else self._constant(name)
            made.append((name in required, self._rules.rule("entry", f"{key} {self._text(assign)} {SPACE} {value}")))
        free = ""
        if extra is not False:
            value = self._value(extra, root, where)
            free = self._rules.rule("entry", f"{self._free_key(names, plain)} {self._text(assign)} {SPACE} {value}")
        entries, may_miss = self._rules.entries(made, self._comma, free)
        return f"{entries}?" if entries and may_miss else entries

    def _free_key(self, names: Mapping[str, Any], plain: bool) -> str:
        """A key that is none of the given ones."""
        others = f" & ~({' | '.join(map(text_literal, names))})" if names else ""
        if plain:
            return self._rules.rule("KEY", f"{_PLAIN_KEY}{others}")
        quote = text_literal(self._body.quotes[0])
        return self._rules.rule("KEY", f"{quote} ({_QUOTED_KEY}{others}) {quote}")

    def _reference(self, schema: Mapping[str, Any], root: Mapping[str, Any], where: str) -> str:
        """A rule for what a reference leads to; it may refer to itself."""
        place = (id(root), str(schema["$ref"]))
        if set(schema) - {"$ref", "$defs", "definitions", "title", "description", "default", "examples"}:
            return self._rules.json(schema, root, where)
        if place not in self._references:
            name = self._references[place] = self._rules.reserve("ref")
            target = schemas.resolve(root, place[1])
            self._rules.define(name, self._value({} if target is None else target, root, where))
        return self._references[place]

    def _target(self, schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
        """The schema of arguments in place of a reference to it."""
        for _ in range(8):
            found = schemas.resolve(root, str(schema.get("$ref", "#"))) if "$ref" in schema else None
            if not isinstance(found, Mapping):
                break
            schema = found
        return schema

    def _any(self) -> str:
        if (place := (0, "")) not in self._references:
            name = self._references[place] = self._rules.reserve("any")
            free: dict[str, Any] = {}
            kinds = [self._of_kind(kind, free, free, "a value") for kind in _KINDS]
            self._rules.define(name, self._either(kinds))
        return self._references[place]

    # --- signs

    @property
    def _comma(self) -> str:
        return f'"," {SPACE}'

    @staticmethod
    def _either(options: list[str]) -> str:
        return f"({' | '.join(options)})"

    def _constant(self, value: Any) -> str:
        """A value that is given."""
        if isinstance(value, str) and len(quote := self._body.quotes[0]) > 1:
            inner = text_literal(value) if value else ""
            return f"{self._text(quote)} {inner} {self._text(quote)}"
        if isinstance(value, Mapping | list):
            return self._rules.json({"const": value}, {}, "a value")
        return text_literal(value_text(value, self._body))


def _kinds_of(schema: Mapping[str, Any]) -> list[str] | None:
    """The types of a schema; None where it names none, and implies none."""
    kinds = schema.get("type")
    if isinstance(kinds, str):
        kinds = [kinds]
    if kinds is None:
        implied = {"object": ("properties", "required"), "array": ("items", "prefixItems")}
        kinds = [kind for kind, words in implied.items() if any(word in schema for word in words)] or None
    return kinds


def _is_one_of(value: Any, kinds: list[str] | None) -> bool:
    """Whether a value is of one of the types; any is where there are none."""
    kind = kind_of(value)
    return kinds is None or kind in kinds or (kind == "integer" and "number" in kinds)
