"""Kimi K2: the id holds the name, `functions.NAME:INDEX`, and the index counts all calls of a conversation."""

from __future__ import annotations

from pyllm.chat.dialects.known.base import Known
from pyllm.chat.dialects.spec import Calls, DialectSpec, HeadBody

KNOWN = Known(
    DialectSpec(
        "hand-written",
        calls=Calls(
            HeadBody(("id", "<|tool_call_argument_begin|>"), name_in_id=r"(?:functions\.)?(.+?)(?::\d+)?"),
            start=("<|tool_call_begin|>",),
            end=("<|tool_call_end|>",),
            section_start=("<|tool_calls_section_begin|>",),
            section_end=("<|tool_calls_section_end|>",),
        ),
    ),
    marks=(
        (
            "<|tool_calls_section_begin|>",
            "<|tool_call_argument_begin|>",
        ),
    ),
)
