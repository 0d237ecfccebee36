"""Calls without their dialect's tags: an answer whose text is nothing but JSON that calls tools, maybe in a code fence.

Models that were not trained on their template's tags write so (Qwen2.5-Coder).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import regex

from pyllm.chat.dialects.calls import new_id
from pyllm.chat.dialects.parser import Parser
from pyllm.chat.dialects.spec import ObjectBody
from pyllm.chat.events import Event, ReasoningDelta, TextDelta, ToolCall, ToolCallArguments, ToolCallBegin, ToolCallEnd

_FENCED = regex.compile(r"\s*```\w*\s*(.*?)\s*(?:```)?\s*", regex.DOTALL)
_DOUBLED = regex.compile(r"\s*\{(\{.*\})\}\s*", regex.DOTALL)
_BETWEEN = regex.compile(r"[\s,]*")


class BareCalls:
    """A parser that holds an answer's text back while it may be calls; the events of `inner` else.

    What is known of the calls comes when the answer is over.
    """

    def __init__(self, inner: Parser, body: ObjectBody, tools: Sequence[str], ids: str) -> None:
        """`tools`: the names that may be called. `ids`: the form of ids (`DialectSpec.ids`)."""
        self._inner, self._body, self._tools, self._ids = inner, body, tools, ids
        names = "|".join(map(regex.escape, tools))
        head = rf'\s*(?:```\w*\s*)?(?:\[\s*)?\{{{{1,2}}\s*"{regex.escape(body.name)}"\s*:\s*"(?:{names})"'
        self._head = regex.compile(head)
        self._whole = regex.compile(rf"{head}.*", regex.DOTALL)
        self._held = ""
        self._holds = bool(tools)

    @property
    def control(self) -> Mapping[int, str]:
        return self._inner.control

    def push(self, text: str, token_id: int | None = None) -> list[Event]:
        return list(self._filtered(self._inner.push(text, token_id)))

    def finish(self, cut_off: bool = False) -> list[Event]:
        events = [*self._filtered(self._inner.finish(cut_off))]
        if not self._held:
            return events
        calls = None if cut_off else self._calls(self._held)
        if calls is not None:
            return [*events, *(event for i, call in enumerate(calls) for event in self._events(i, call))]
        if self._head.match(self._held):
            events.append(ToolCallEnd(0, None, "it is cut off" if cut_off else "it is not a JSON object of a call"))
        return [*events, TextDelta(self._held)]

    def _filtered(self, events: Sequence[Event]) -> Iterator[Event]:
        for event in events:
            if not self._holds or isinstance(event, ReasoningDelta):
                yield event
                continue
            if isinstance(event, TextDelta):
                self._held += event.text
                if self._whole.fullmatch(self._held, partial=True):
                    continue
            self._holds = False
            held, self._held = self._held, ""
            if held:
                yield TextDelta(held)
            if not isinstance(event, TextDelta):
                yield event

    def _calls(self, text: str) -> list[ToolCall] | None:
        """The calls that a text consists of; None where it has something else."""
        if fenced := _FENCED.fullmatch(text):
            text = fenced[1]
        if doubled := _DOUBLED.fullmatch(text):  # as Qwen2.5-Coder's template has it by mistake
            text = doubled[1]
        values: list[Any] = []
        at = len(text) - len(text.lstrip())
        try:
            while at < len(text):
                value, end = json.JSONDecoder().raw_decode(text, at)
                values += value if isinstance(value, list) else [value]
                at = _BETWEEN.match(text, end).end()
        except (ValueError, RecursionError):
            return None
        calls = [self._call(value) for value in values]
        return None if None in calls else [call for call in calls if call is not None]

    def _call(self, value: Any) -> ToolCall | None:
        if not isinstance(value, dict):
            return None
        name = value.get(self._body.name)
        arguments = value.get(self._body.arguments, value.get("parameters", {}))
        if not isinstance(name, str) or name not in self._tools or not isinstance(arguments, dict):
            return None
        return ToolCall(new_id(self._ids), name, arguments)

    @staticmethod
    def _events(index: int, call: ToolCall) -> Iterator[Event]:
        yield ToolCallBegin(index, call.id, call.name)
        yield ToolCallArguments(index, json.dumps(call.arguments, ensure_ascii=False))
        yield ToolCallEnd(index, call)
