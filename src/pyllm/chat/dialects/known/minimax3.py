"""MiniMax M3: arguments are nested tags, `<city>Paris</city>`; items of lists are `<item>…</item>`.

A token stands before each tag.
"""

from __future__ import annotations

from pyllm.chat.dialects.known.base import Known
from pyllm.chat.dialects.spec import Calls, DialectSpec, NestedBody

_MARK = "]<]minimax[>["

KNOWN = Known(
    DialectSpec(
        "hand-written",
        calls=Calls(
            NestedBody('">', _MARK),
            start=(_MARK + '<invoke name="',),
            end=(_MARK + "</invoke>",),
            section_start=(_MARK + "<tool_call>",),
            section_end=(_MARK + "</tool_call>",),
        ),
    ),
    marks=(("]<]minimax[>[", "<tool_call>", "<invoke name="),),
)
