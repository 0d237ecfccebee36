"""Calls that come without the dialect's tags: an answer that is nothing but their JSON."""

from __future__ import annotations

from typing import Any

import pytest

from pyllm.chat import ChatTemplate
from pyllm.chat.dialects import dialect_of
from pyllm.chat.events import Event, ReasoningDelta, TextDelta, ToolCallEnd

HERMES = (
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}<tool_call>\n"
    "{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}\n</tool_call>{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}
    for name in ("weather", "search")
]


def parsed(answer: str, size: int, cut_off: bool = False) -> list[Event]:
    parser = dialect_of(ChatTemplate({"default": HERMES})).parser(TOOLS)
    pieces = [answer[i : i + size] for i in range(0, len(answer), size)]
    return [event for piece in pieces for event in parser.push(piece)] + parser.finish(cut_off)


def text_of(events: list[Event]) -> str:
    return "".join(e.text for e in events if isinstance(e, TextDelta))


def calls_of(events: list[Event]) -> list[tuple[str, dict[str, Any]]]:
    return [(e.call.name, e.call.arguments) for e in events if isinstance(e, ToolCallEnd) and e.call is not None]


PARIS = '{"name": "weather", "arguments": {"city": "Paris"}}'
ROME = '{"name": "search", "arguments": {"q": "Rome"}}'


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    ("answer", "calls"),
    [
        (PARIS, 1),
        (f"```json\n{PARIS}\n```", 1),
        (f"```\n{PARIS}\n```\n", 1),
        (f"[{PARIS}, {ROME}]", 2),
        (f"{PARIS}\n{ROME}", 2),
        (f"{{{PARIS}}}", 1),
        ('{"name": "weather", "parameters": {"city": "Paris"}}', 1),
    ],
)
def test_an_answer_of_nothing_but_calls(answer: str, calls: int, size: int) -> None:
    events = parsed(answer, size)
    wanted = [("weather", {"city": "Paris"}), ("search", {"q": "Rome"})]
    assert calls_of(events) == wanted[:calls]
    assert text_of(events) == ""


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    "answer",
    [
        "",
        "It rains.",
        f"The call is {PARIS}",
        f"{PARIS} is the call.",
        '{"name": "unknown", "arguments": {}}',
        '{"name": "weather", "arguments": "Paris"}',
        '{"city": "Paris"}',
        "```json\n[1, 2]\n```",
        f"```json\n{PARIS[:-1]}\n```",
        f"[{PARIS}, 1]",
    ],
)
def test_everything_else_is_text(answer: str, size: int) -> None:
    events = parsed(answer, size)
    assert calls_of(events) == []
    assert text_of(events) == answer


def test_a_call_that_is_cut_off_is_text_with_a_reason() -> None:
    events = parsed(PARIS[:-4], 5, cut_off=True)
    assert [e.reason for e in events if isinstance(e, ToolCallEnd)] == ["it is cut off"]
    assert text_of(events) == PARIS[:-4]


def test_calls_in_tags_come_as_before() -> None:
    events = parsed(f"<tool_call>\n{PARIS}\n</tool_call>", 4)
    assert calls_of(events) == [("weather", {"city": "Paris"})]
    assert not any(isinstance(e, ReasoningDelta) for e in events)


def test_text_that_is_no_call_is_not_held_back() -> None:
    parser = dialect_of(ChatTemplate({"default": HERMES})).parser(TOOLS)
    assert text_of(parser.push('{"na')) == ""
    assert text_of(parser.push("tion")) == '{"nation'
    assert text_of(parser.push('": 1}')) == '": 1}'
