"""What a model's answer consists of, as it comes: text, reasoning and tool calls. Later events only ever append."""

from __future__ import annotations

from typing import Any

from pyllm.records import dataclass


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool: a whole one, its arguments decoded."""

    id: str
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class TextDelta:
    """More of the answer's text."""

    text: str


@dataclass(frozen=True)
class ReasoningDelta:
    """More of what the model writes before it answers."""

    text: str


@dataclass(frozen=True)
class ToolCallBegin:
    """A tool call begins. `index` counts the calls of an answer from 0."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class ToolCallArguments:
    """More of the arguments of call `index`; joined, the deltas of a call are a JSON object."""

    index: int
    delta: str


@dataclass(frozen=True)
class ToolCallEnd:
    """Call `index` is over: `call` is the whole call.

    Or `call` is None and `reason` says what is wrong with it; what the model wrote then follows as text (within
    reasoning as that), and what was said of the call before is void. Without a name no ToolCallBegin came before.
    """

    index: int
    call: ToolCall | None
    reason: str | None = None


Event = TextDelta | ReasoningDelta | ToolCallBegin | ToolCallArguments | ToolCallEnd
