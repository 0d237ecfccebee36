"""Gemma 4: `<|tool_call>call:NAME{key:<|"|>text<|"|>,n:1}<tool_call|>`; reasoning in the channel "thought"."""

from __future__ import annotations

from pyllm.chat.dialects.known.base import Known
from pyllm.chat.dialects.spec import Calls, DialectSpec, LiteralBody, Reasoning

KNOWN = Known(
    DialectSpec(
        "hand-written",
        Reasoning("<|channel>thought", "<channel|>"),
        Calls(
            LiteralBody("{", "}", ":", before=("call", ":"), quotes=('<|"|>', '"', "'"), plain_keys=True),
            start=("<|tool_call>",),
            end=("<tool_call|>",),
        ),
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
