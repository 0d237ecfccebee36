"""MiniMax M3: arguments are nested tags, `<city>Paris</city>`; items of lists are `<item>…</item>`.

A token stands before each tag.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pyllm.chat.dialects.known.base import Known
from pyllm.chat.dialects.spec import Calls, DialectSpec, Schemas, WholeBody
from pyllm.chat.dialects.typed import kinds_of, typed

_MARK = "]<]minimax[>["
_TAG = re.compile(re.escape(_MARK) + r"<(/?)([^<>]+)>")


def nested_call(text: str, schemas: Schemas) -> list[tuple[str, dict[str, Any]]]:
    """The call `NAME">…`. Raises ValueError where tags don't match."""
    name, there, rest = text.partition('">')
    if not there:
        raise ValueError("its name has no end")
    tags = _TAG.finditer(rest)
    arguments = _children(rest, tags, "", schemas.get(name, {}))
    return [(name, arguments)]


def _children(text: str, tags: Iterator[re.Match[str]], closing: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for tag in tags:
        if tag[1]:
            if tag[2] != closing:
                raise ValueError(f"</{tag[2]}> ends nothing")
            return found
        found[tag[2]] = _value(text, tags, tag, kinds_of(schema, tag[2]), _inner(schema, tag[2]))
    if closing:
        raise ValueError(f"<{closing}> has no end")
    return found


def _value(
    text: str,
    tags: Iterator[re.Match[str]],
    opened: re.Match[str],
    kinds: frozenset[str] | None,
    schema: Mapping[str, Any],
) -> Any:
    """What stands in a tag: a text, a list of items, or an object."""
    name, items, entries = opened[2], list[Any](), dict[str, Any]()
    for tag in tags:
        if not tag[1]:
            inner = _value(text, tags, tag, kinds_of(schema, tag[2]), _inner(schema, tag[2]))
            items.append(inner)
            entries[tag[2]] = inner
        elif tag[2] != name:
            raise ValueError(f"</{tag[2]}> ends nothing")
        elif not items or (kinds and not kinds & {"array", "object"}):
            return typed(text[opened.end() : tag.start()], kinds)
        else:
            listed = "array" in kinds if kinds else entries.keys() == {"item"}
            return items if listed else entries
    raise ValueError(f"<{name}> has no end")


def _inner(schema: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The schema of an argument, as one that has properties; a list's items are one called "item"."""
    properties = schema.get("properties")
    entry = properties.get(key) if isinstance(properties, Mapping) else None
    if not isinstance(entry, Mapping):
        return {}
    return {"properties": {"item": entry["items"]}} if isinstance(entry.get("items"), Mapping) else entry


KNOWN = Known(
    DialectSpec(
        "hand-written",
        calls=Calls(
            WholeBody(nested_call),
            start=(_MARK + '<invoke name="',),
            end=(_MARK + "</invoke>",),
            section_start=(_MARK + "<tool_call>",),
            section_end=(_MARK + "</tool_call>",),
        ),
    ),
    marks=(("]<]minimax[>[", "<tool_call>", "<invoke name="),),
)
