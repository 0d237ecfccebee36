"""The events of `stream="events"`: an answer's text, reasoning and tool calls, log probabilities, and its end.

Events only ever append: the text deltas of a stream, joined, are the answer's text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.chat.events import ReasoningDelta, TextDelta, ToolCall, ToolCallArguments, ToolCallBegin, ToolCallEnd
from pyllm.records import dataclass

if TYPE_CHECKING:
    from pyllm.llm.results import FinishReason, TokenLogprob, Usage

__all__ = [
    "Event",
    "Finish",
    "ReasoningDelta",
    "TextDelta",
    "TokenLogprobs",
    "ToolCall",
    "ToolCallArguments",
    "ToolCallBegin",
    "ToolCallEnd",
]


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """The log probabilities of a token, before the text that it completes."""

    token: TokenLogprob


@dataclass(frozen=True, slots=True)
class Finish:
    """The last event of a stream."""

    reason: FinishReason
    usage: Usage
    stop_string: str | None = None
    """The stop string that ended the answer."""


Event = TextDelta | ReasoningDelta | ToolCallBegin | ToolCallArguments | ToolCallEnd | TokenLogprobs | Finish
