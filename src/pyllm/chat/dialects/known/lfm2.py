"""LFM2: calls are a list of Python calls, `<|tool_call_start|>[f(a=1), g(b="x")]<|tool_call_end|>`.

Its templates show no calls at all, or write line breaks within strings.
"""

from __future__ import annotations

from pyllm.chat.dialects.known.base import Known
from pyllm.chat.dialects.spec import Calls, DialectSpec, LiteralBody

KNOWN = Known(
    DialectSpec(
        "hand-written",
        calls=Calls(
            LiteralBody("(", ")", "=", words=("True", "False", "None"), listed=True),
            start=("<|tool_call_start|>",),
            end=("<|tool_call_end|>",),
        ),
    ),
    marks=(("<|im_start|>", "List of tools: ["), ("<|im_start|>", "<|tool_list_start|>")),
    tokens=("<|tool_call_start|>", "<|tool_call_end|>"),
)
