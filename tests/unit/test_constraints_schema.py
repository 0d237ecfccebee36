"""Schemas that cannot be held: refused with the keyword and where it is, or ignored with a warning; bounds."""

from __future__ import annotations

from typing import Any

import pytest

from pyllm.constraints import schema as schemas
from pyllm.errors import RequestError


def within(keyword: dict[str, Any]) -> dict[str, Any]:
    """A schema with keywords at a place of their own."""
    inner = {"type": "array", "items": keyword, "minItems": 1}
    return {"type": "object", "properties": {"a/b": inner}, "required": ["a/b"]}


REFUSED = [
    ({"uniqueItems": True, "type": "array"}, "uniqueItems", "uniqueItems is not supported"),
    ({"not": {"type": "string"}}, "not", "not is not supported"),
    ({"propertyNames": {"maxLength": 3}}, "propertyNames", "propertyNames is not supported"),
    ({"dependentRequired": {"a": ["b"]}}, "dependentRequired", "dependentRequired is not supported"),
    ({"contains": {"type": "integer"}}, "contains", "contains is not supported"),
    ({"type": "string", "format": "uri-reference"}, "format", "unknown format: uri-reference"),
    ({"type": "string", "pattern": "(?=a)b"}, "pattern", "look-around, including look-ahead and look-behind, is not"),
    ({"type": "string", "pattern": "("}, "pattern", "unclosed group"),
    ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum", "minimum (5) is greater than maximum (3)"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf", "oneOf of schemas that may overlap"),
    ({"enum": []}, "enum", "unsatisfiable"),
    ({"type": "txt"}, "type", "invalid type: txt"),
]


@pytest.mark.parametrize(("keyword", "name", "words"), REFUSED)
def test_a_strict_schema_is_refused_by_keyword_and_path(keyword: dict[str, Any], name: str, words: str) -> None:
    with pytest.raises(RequestError) as error:
        schemas.hold(within(keyword), "response_format", strict=True)
    message = str(error.value)
    assert message.startswith(f"response_format: the schema cannot be held at #/properties/a~1b/items/{name}: ")
    assert words in message
    assert message.endswith("change that, or set strict to False")


@pytest.mark.parametrize(("keyword", "name", "words"), REFUSED)
def test_a_lenient_schema_is_held_without_the_keyword(keyword: dict[str, Any], name: str, words: str) -> None:
    held = schemas.hold(within(keyword), "tool x", strict=False)
    assert len(held.warnings) == 1
    assert held.warnings[0].startswith("tool x: not held: #/properties/a~1b/items")
    assert words in held.warnings[0]
    assert not schemas.fault(held.grammar)


def test_a_fault_is_where_it_is_written_not_where_it_is_referred_to() -> None:
    schema = {"properties": {"q": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"properties": {"x": {"not": {}}}}}}
    with pytest.raises(RequestError, match=r"at #/\$defs/a/properties/x/not:"):
        schemas.hold(schema, "response_format", strict=True)
    with pytest.raises(RequestError, match=r"at #/properties/q/\$ref: pointer '/\$defs/b' does not exist"):
        schemas.hold({"properties": {"q": {"$ref": "#/$defs/b"}}}, "response_format", strict=True)


def nested(n: int) -> dict[str, Any]:
    made: dict[str, Any] = {"type": "null"}
    for _ in range(n):
        made = {"type": "array", "items": made}
    return made


def chain(n: int) -> dict[str, Any]:
    definitions: dict[str, Any] = {f"a{i}": {"properties": {"x": {"$ref": f"#/$defs/a{i + 1}"}}} for i in range(n)}
    return {"$ref": "#/$defs/a0", "$defs": {**definitions, f"a{n}": {"type": "null"}}}


BEYOND = [
    (5, "tool x must be a JSON schema: an object, not int"),
    (nested(5000), "tool x: the schema is deeper than 100 levels; use references ($ref)"),
    (chain(900), "tool x: the schema's references lead more than 1000 levels deep; flatten them"),
    ({"enum": ["x" * 300_000]}, "tool x: the schema has 300014 characters; 200000 are allowed"),
    ({"anyOf": [{}] * 4000}, "tool x: the schema has 4001 schemas within it; 3000 are allowed"),
    ({"multipleOf": 99991}, "tool x: multipleOf needs more than 10000 states; leave it out"),
    ({"const": float("nan")}, "tool x: the schema cannot be written as JSON; Out of range"),
    (
        {"$ref": "https://example.com/s.json"},
        "tool x: $ref 'https://example.com/s.json' cannot be followed; references",
    ),
]


@pytest.mark.parametrize(("schema", "words"), BEYOND)
def test_bounds(schema: Any, words: str) -> None:
    for strict in (True, False):
        with pytest.raises(RequestError) as error:
            schemas.hold(schema, "tool x", strict=strict)
        assert str(error.value).startswith(words)


def test_what_is_just_within_the_bounds_is_held() -> None:
    """Deep schemas are compiled recursively: none may overflow the stack."""
    assert not schemas.hold(nested(90), "x", strict=True).warnings
    assert not schemas.hold(chain(240), "x", strict=True).warnings


def test_options_of_the_compiler_in_a_schema_count_for_nothing() -> None:
    with pytest.raises(RequestError, match="uniqueItems"):
        schemas.hold({"type": "array", "uniqueItems": True, "x-guidance": {"lenient": True}}, "x", strict=True)


def test_objects_are_closed_where_that_admits_only_less() -> None:
    plain = {"type": "object", "properties": {"a": {"type": "object", "properties": {}}}}
    closed = schemas.closed(plain)
    assert closed["additionalProperties"] is False
    assert closed["properties"]["a"]["additionalProperties"] is False
    assert "additionalProperties" not in plain
    for schema in (
        {"properties": {"a": {}}, "required": ["b"]},
        {"properties": {"a": {}}, "additionalProperties": {"type": "null"}},
        {"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]},
        {"properties": {"a": {}}, "anyOf": [{"properties": {"b": {}}}, {}]},
        {"properties": {"a": {}}, "$ref": "#/$defs/x", "$defs": {"x": {"properties": {"b": {}}}}},
    ):
        assert schemas.closed(schema) == schema
