"""gpt-oss: an answer is messages in channels; https://cookbook.openai.com/articles/openai-harmony.

`<|channel|>analysis<|message|>…<|end|><|start|>assistant to=functions.NAME<|channel|>commentary json<|message|>{…}`
"""

from __future__ import annotations

from pyllm.chat.dialects.known.base import Known
from pyllm.chat.dialects.spec import Channels, DialectSpec

KNOWN = Known(
    DialectSpec(
        "hand-written",
        channels=Channels(
            opens=("<|start|>", "<|channel|>"),
            header_end="<|message|>",
            ends=("<|end|>", "<|return|>", "<|call|>"),
            begins=("to=",),
            reasoning=r"<\|channel\|>\s*analysis\b",
            call=r"\bto=(?!assistant\b)(?:functions\.)?([^\s<]+)",
            calls=(
                ("<|channel|>commentary to=functions.", "name", " <|constrain|>json"),
                (" to=functions.", "name", "<|channel|>commentary json"),
            ),
            thoughts=("<|channel|>analysis",),
            texts=("<|channel|>final", "<|channel|>commentary"),
            between="<|end|><|start|>assistant",
        ),
    ),
    marks=(
        (
            "<|channel|>",
            "<|message|>",
            "<|start|>",
        ),
    ),
)
