"""Whether a dialect reads what its own template writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pyllm.chat.dialects.derive import NAMES
from pyllm.chat.dialects.parser import Parser
from pyllm.chat.dialects.probing import Probe, Said
from pyllm.chat.dialects.spec import DialectSpec
from pyllm.chat.events import Event, ReasoningDelta, TextDelta, ToolCallEnd

_TYPES = {
    "text": {"type": "string"},
    "count": {"type": "integer"},
    "ratio": {"type": "number"},
    "flag": {"type": "boolean"},
    "entries": {"type": "array"},
    "options": {"type": "object"},
}
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {"name": name, "description": ".", "parameters": {"type": "object", "properties": _TYPES}},
    }
    for name in NAMES
]
_ONE, _TWO = NAMES
MESSAGES: tuple[Said, ...] = (
    Said("A plain answer."),
    Said("Two lines.\n\n- with a list\n- and {braces} or [brackets]"),
    Said("An answer.", "A thought,\nin two lines."),
    Said("", "", [(_ONE, {"text": "Paris"})]),
    Said("", "", [(_ONE, {"text": 'a "quote", a \\ and\nlines\n', "count": -3, "flag": True})]),
    Said("", "", [(_ONE, {"count": 3}), (_TWO, {"text": "7", "ratio": 0.5})]),
    Said("", "", [(_TWO, {"options": {"a": [1, {"b": "ü 🙂"}]}, "entries": ["x", 2], "flag": False})]),
    Said("", "", [(_ONE, {})]),
    Said("Text first.", "", [(_ONE, {"text": "true"})]),
    Said("Text.", "Thought.", [(_ONE, {"text": "Zoë"}), (_TWO, {"text": "</b> <i>"})]),
)
"""Answers that a dialect must read as they were."""


def problems(probe: Probe, spec: DialectSpec) -> Iterator[str]:
    """What comes back other than it was, a sentence each. What a template doesn't write is not asked for."""
    for said in MESSAGES:
        body = probe.body(said)
        if body is None or not all(name in body for name in said.names):
            continue
        if spec.header.strip() and spec.header in body:
            continue  # two turns are made of it
        if said.calls and spec.calls is None and spec.channels is None:
            continue
        expected = seen(said, body)
        found = parsed(Parser(spec, TOOLS), answer(body, spec))
        text, reasoning, calls = expected
        # What is said before a call is a thought to harmony.
        if found != expected and not (spec.channels and calls and found == ("", text + reasoning, calls)):
            yield f"{expected} reads as {found}"


def answer(body: str, spec: DialectSpec) -> str:
    """A rendered answer without what the template writes after it."""
    after = max((end for end in spec.turn_ends if body.endswith(end)), key=len, default="")
    body = body.removesuffix(after)
    if (reasoning := spec.reasoning) is None:
        return body
    # Some histories open reasoning and don't close it, or leave out the opening that the prompt writes.
    if reasoning.end not in body:
        return body.lstrip().removeprefix(reasoning.start)
    begun = reasoning.start in body or not spec.prefix.strip().endswith(reasoning.start)
    return body if begun else reasoning.start + body


def seen(said: Said, body: str) -> tuple[str, str, list[tuple[str, Mapping[str, Any]]]]:
    """What of an answer a template has written: some leave out text beside calls, or reasoning."""
    shown = [text if text and text in body else "" for text in (said.text, said.reasoning)]
    return shown[0], shown[1], [(name, dict(arguments)) for name, arguments in said.calls]


def parsed(parser: Parser, text: str) -> tuple[str, str, list[tuple[str, Mapping[str, Any]]]]:
    """A whole answer: text, reasoning, calls."""
    return gathered([*parser.push(text), *parser.finish()])


def gathered(events: list[Event]) -> tuple[str, str, list[tuple[str, Mapping[str, Any]]]]:
    text = "".join(e.text for e in events if isinstance(e, TextDelta))
    reasoning = "".join(e.text for e in events if isinstance(e, ReasoningDelta))
    ended = [e.call for e in events if isinstance(e, ToolCallEnd)]
    return text, reasoning, [(c.name, c.arguments) for c in ended if c is not None]
