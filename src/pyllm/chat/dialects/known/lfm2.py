"""LFM2: calls are a list of Python calls, `<|tool_call_start|>[f(a=1), g(b="x")]<|tool_call_end|>`.

Its templates show no calls at all, or write line breaks within strings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pyllm.chat.dialects.known.base import Known
from pyllm.chat.dialects.literals import LiteralReader
from pyllm.chat.dialects.spec import Calls, DialectSpec, Schemas, WholeBody


def python_calls(text: str, schemas: Schemas) -> list[tuple[str, dict[str, Any]]]:
    """Calls with keyword arguments, alone or in a list. Raises ValueError where it is none."""
    reader = LiteralReader(text)
    listed = reader.sees("[")
    found = []
    while True:
        name = reader.name()
        reader.want("(")
        found.append((name, reader.entries(")", "=")))
        if not listed or not reader.sees(","):
            break
    if listed:
        reader.want("]")
    reader.end()
    return found


def python_text(calls: Sequence[tuple[str, Any]]) -> str:
    """The list of calls. Arguments that are no dictionary stand as one literal."""
    return "[" + ", ".join(f"{name}({_arguments(arguments)})" for name, arguments in calls) + "]"


def _arguments(arguments: Any) -> str:
    if not isinstance(arguments, Mapping):
        return _literal(arguments)
    return ", ".join(f"{key}={_literal(value)}" for key, value in arguments.items())


def _literal(value: Any) -> str:
    """Python's literal; texts in double quotes, their characters as they are."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(key)}: {_literal(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return repr(value)


KNOWN = Known(
    DialectSpec(
        "hand-written",
        calls=Calls(WholeBody(python_calls, python_text), start=("<|tool_call_start|>",), end=("<|tool_call_end|>",)),
    ),
    marks=(("<|im_start|>", "List of tools: ["), ("<|im_start|>", "<|tool_list_start|>")),
    tokens=("<|tool_call_start|>", "<|tool_call_end|>"),
)
