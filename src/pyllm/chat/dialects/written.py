"""Calls as a model writes them, for templates that show tools but no calls."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pyllm.chat.dialects.known import recognised
from pyllm.chat.dialects.literals import literal_text
from pyllm.chat.dialects.spec import Calls, LiteralBody, ObjectBody

Write = Callable[[Sequence[Mapping[str, Any]]], str]
"""The text of calls {"function": {"name", "arguments"}}."""


def writer_of(source: str) -> Write | None:
    """How calls are written in the hand-written dialect that a template's source is recognised as, if that is known."""
    known = recognised(source)
    calls = known.spec.calls if known is not None else None
    if calls is None:
        return None
    body = calls.body
    if isinstance(body, ObjectBody):
        return lambda given: _section(calls, [_object(body, call["function"]) for call in given])
    if isinstance(body, LiteralBody):
        return lambda given: _section(
            calls, [literal_text([(c["function"]["name"], c["function"]["arguments"]) for c in given], body)]
        )
    return None


def _section(calls: Calls, written: Sequence[str]) -> str:
    start, end = "".join(calls.start), "".join(calls.end)
    items = calls.separator.join(start + text + end for text in written)
    return "".join(calls.section_start) + items + "".join(calls.section_end)


def _object(body: ObjectBody, function: Mapping[str, Any]) -> str:
    return json.dumps({body.name: function["name"], body.arguments: function["arguments"]}, ensure_ascii=False)
