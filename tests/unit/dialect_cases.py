"""What tests of dialects share: tools, and an answer's events put together."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pyllm.chat.dialects.parser import Parser
from pyllm.chat.events import (
    Event,
    ReasoningDelta,
    TextDelta,
    ToolCallArguments,
    ToolCallBegin,
    ToolCallEnd,
)


def tool(name: str, **properties: Any) -> dict[str, Any]:
    """A tool whose parameters have these types, or schemas."""
    schemas = {k: {"type": v} if isinstance(v, str) else v for k, v in properties.items()}
    parameters = {"type": "object", "properties": schemas, "required": []}
    return {"type": "function", "function": {"name": name, "description": "Does it.", "parameters": parameters}}


WEATHER = tool("get_weather", city="string", days="integer", metric="boolean", options="object", places="array")
SEARCH = tool("search_files", pattern="string", limit="number", code="string")
TOOLS = [WEATHER, SEARCH]


@dataclass
class Gathered:
    """An answer's events, joined; whoever adds them checks that later ones only append."""

    text: str = ""
    reasoning: str = ""
    calls: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    _names: dict[int, tuple[str, str]] = field(default_factory=dict)
    _arguments: dict[int, str] = field(default_factory=dict)
    _ended: set[int] = field(default_factory=set)

    def add(self, events: Iterable[Event]) -> None:
        for event in events:
            match event:
                case TextDelta(text):
                    assert text
                    self.text += text
                case ReasoningDelta(text):
                    assert text
                    self.reasoning += text
                case ToolCallBegin(index, call_id, name):
                    assert index == len(self._ended)
                    assert index not in self._names
                    self._names[index] = (call_id, name)
                    self._arguments[index] = ""
                case ToolCallArguments(index, delta):
                    assert delta
                    assert index in self._names
                    assert index not in self._ended
                    self._arguments[index] += delta
                case ToolCallEnd(index, call, reason):
                    assert index == len(self._ended)
                    self._ended.add(index)
                    assert (call is None) == (reason is not None)
                    if call is None:
                        self.reasons.append(str(reason))
                        continue
                    assert self._names[index] == (call.id, call.name)
                    assert json.loads(self._arguments[index]) == call.arguments
                    self.calls.append((call.name, call.arguments))
                    self.ids.append(call.id)

    @property
    def open(self) -> bool:
        """Whether a call has begun and not ended."""
        return len(self._names) > 0 and max(self._names) not in self._ended


def read(parser: Parser, pieces: Iterable[str | tuple[str, int]], cut_off: bool = False) -> Gathered:
    """An answer that arrives in these pieces: texts, or tokens with their ids."""
    found = Gathered()
    for piece in pieces:
        found.add(parser.push(piece) if isinstance(piece, str) else parser.push(*piece))
    found.add(parser.finish(cut_off))
    assert not found.open
    return found
