"""Gemma 4: `<|tool_call>call:NAME{key:<|"|>text<|"|>,n:1}<tool_call|>`; reasoning in the channel "thought"."""

from __future__ import annotations

from typing import Any

from pyllm.chat.dialects.known.base import Known
from pyllm.chat.dialects.literals import LiteralReader
from pyllm.chat.dialects.spec import Calls, DialectSpec, Reasoning, Schemas, WholeBody


def gemma_call(text: str, schemas: Schemas) -> list[tuple[str, dict[str, Any]]]:
    """The call `call:NAME{…}`. Raises ValueError where it is none."""
    reader = LiteralReader(text, ('<|"|>', '"', "'"))
    reader.want("call")
    reader.want(":")
    name = reader.name()
    reader.want("{")
    arguments = reader.entries("}", ":")
    reader.end()
    return [(name, arguments)]


KNOWN = Known(
    DialectSpec(
        "hand-written",
        Reasoning("<|channel>thought", "<channel|>"),
        Calls(WholeBody(gemma_call), start=("<|tool_call>",), end=("<tool_call|>",)),
        turn_ends=("<turn|>\n", "<|tool_response>"),
    ),
    marks=(
        (
            "<|tool_call>",
            "<tool_call|>",
            "<|channel>",
        ),
    ),
)
