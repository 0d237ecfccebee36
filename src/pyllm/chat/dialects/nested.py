"""Calls whose arguments are nested tags (`<city>Paris</city>`, `<item>…</item>`), read when all of it is there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pyllm.chat.dialects.reader import clean
from pyllm.chat.dialects.spec import NestedBody, Schemas
from pyllm.chat.dialects.typed import kinds_in, resolved, typed


def nested_calls(text: str, body: NestedBody, schemas: Schemas) -> list[tuple[str, dict[str, Any]]]:
    """The one call that a text is. Raises ValueError where tags don't match. `schemas` are the tools' by name."""
    name, there, rest = text.partition(body.after_name)
    if not there:
        raise ValueError("its name has no end")
    name = clean(name)
    return [(name, _Reader(rest, body, schemas.get(name, {})).arguments())]


class _Reader:
    def __init__(self, text: str, body: NestedBody, root: Mapping[str, Any]) -> None:
        self._text, self._item, self._root = text, body.item, root
        self._tags: Iterator[re.Match[str]] = re.finditer(re.escape(body.mark) + r"<(/?)([^<>]+)>", text)

    def arguments(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for tag in self._tags:
            if tag[1]:
                raise ValueError(f"</{tag[2]}> ends nothing")
            found[tag[2]] = self._value(tag, self._within(self._root, tag[2]))
        return found

    def _value(self, opened: re.Match[str], schema: Any) -> Any:
        """What stands in a tag: a text, a list of items, or an object."""
        kinds = kinds_in(schema, self._root)
        items, entries = list[Any](), dict[str, Any]()
        for tag in self._tags:
            if not tag[1]:
                inner = self._value(tag, self._within(schema, tag[2]))
                items.append(inner)
                entries[tag[2]] = inner
            elif tag[2] != opened[2]:
                raise ValueError(f"</{tag[2]}> ends nothing")
            elif not items or (kinds and not kinds & {"array", "object"}):
                return typed(clean(self._text[opened.end() : tag.start()]), kinds)
            else:
                listed = "array" in kinds if kinds else entries.keys() == {self._item}
                return items if listed else entries
        raise ValueError(f"<{opened[2]}> has no end")

    def _within(self, schema: Any, tag: str) -> Any:
        """The schema of what stands in a tag within a value: a property's, or that of a list's items."""
        schema = resolved(schema, self._root)
        properties = schema.get("properties")
        if isinstance(properties, Mapping) and tag in properties:
            return properties[tag]
        return schema.get("items") if tag == self._item else None
