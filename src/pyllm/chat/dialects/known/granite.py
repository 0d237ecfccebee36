"""Granite 3.x: `<|tool_call|>` and a JSON list; the template shows no calls. Answers may stand in `<response>`."""

from __future__ import annotations

from pyllm.chat.dialects.known.base import Known
from pyllm.chat.dialects.spec import Calls, DialectSpec, ObjectBody

KNOWN = Known(
    DialectSpec(
        "hand-written",
        calls=Calls(ObjectBody(), section_start=("<|tool_call|>", "["), section_end=("]",), separator=","),
        silent=("<response>", "</response>"),
    ),
    marks=(("<|tool_call|> followed by a JSON list",),),
)
