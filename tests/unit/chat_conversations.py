"""Conversations of every kind, for templates of many models."""

from __future__ import annotations

import copy
import json
from datetime import datetime
from typing import Any

TOKENS = {"bos_token": "<BOS>", "eos_token": "<EOS>", "unk_token": "<UNK>", "pad_token": "<PAD>"}
DAY = datetime(2026, 1, 31, 12, 5, 9)
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": 'Weather of a "city" <now>',
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "the city"},
                    "days": {"type": "integer", "maximum": 1000000, "default": 1},
                    "kind": {"type": "string", "enum": ["rain", "wind"]},
                },
                "required": ["city"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "clock",
            "description": "The time",
            "parameters": {"type": "object", "properties": {}},
        },
    },
]


def _user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _call(content: Any, *arguments: Any) -> dict[str, Any]:
    calls = [
        {"id": f"abcdef12{i}", "type": "function", "function": {"name": "weather", "arguments": a}}
        for i, a in enumerate(arguments)
    ]
    return {"role": "assistant", "content": content, "tool_calls": calls}


def _result(i: int, content: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": f"abcdef12{i}", "name": "weather", "content": content}


_SYSTEM = {"role": "system", "content": "Be brief."}
_ASK, _WHY, _AND = _user("Is it wet in Köln <now>?"), _user("Why?"), _user("  And now? \n")
_ANSWER = {"role": "assistant", "content": "It is 21 °C. \n"}
_CITY = {"city": "Köln"}
_CALL = _call("", {**_CITY, "days": 3, "deep": {"a": [1, 2.5, None, True]}})
_CALLS = _call("I look.", _CITY, {"city": "Bonn", "when": 1700000000})
_R0, _R1 = _result(0, '{"t": 21}'), _result(1, '{"t": 20}')
_THOUGHT = {"role": "assistant", "content": "It is 21.", "reasoning_content": "Köln.", "thinking": "Köln."}
_INLINE = {"role": "assistant", "content": "<think>\nKöln.\n</think>\n\nIt is 21."}
_RULES = {"role": "system", "content": "Be brief.\n\nBe brief."}
_PARTS = [{"type": "text", "text": "part one"}, {"type": "text", "text": "part two"}]

Case = tuple[list[dict[str, Any]], list[dict[str, Any]] | None, dict[str, Any]]

CASES: dict[str, Case] = {
    "plain": ([_ASK], None, {}),
    "no generation": ([_ASK, _ANSWER], None, {"add_generation_prompt": False}),
    "turns": ([_ASK, _ANSWER, _AND], None, {}),
    "system": ([_SYSTEM, _ASK], None, {}),
    "system, turns": ([_SYSTEM, _ASK, _ANSWER, _WHY, _ANSWER, _AND], None, {}),
    "two systems": ([_SYSTEM, _SYSTEM, _ASK], None, {}),
    "two systems as one": ([_RULES, _ASK], None, {}),
    "developer": ([{"role": "developer", "content": "Be brief."}, _ASK], None, {}),
    "tools": ([_ASK], TOOLS, {}),
    "system, tools": ([_SYSTEM, _ASK], TOOLS, {}),
    "call": ([_SYSTEM, _ASK, _CALL], TOOLS, {}),
    "result": ([_SYSTEM, _ASK, _CALL, _R0], TOOLS, {}),
    "two results": ([_ASK, _CALLS, _R0, _R1], TOOLS, {}),
    "result, turn": ([_ASK, _CALL, _R0, _ANSWER, _AND], TOOLS, {}),
    "calls, turns": ([_ASK, _CALL, _R0, _CALLS, _R0, _R1, _ANSWER, _AND], TOOLS, {}),
    "arguments as text": ([_ASK, _call("", json.dumps(_CITY)), _R0], TOOLS, {}),
    "arguments as dictionary": ([_ASK, _call("", _CITY), _R0], TOOLS, {}),
    "call without content": ([_ASK, _call(None, _CITY), _R0], TOOLS, {}),
    "call without tools": ([_ASK, _CALL, _R0], None, {}),
    "reasoning": ([_ASK, _THOUGHT, _WHY], None, {}),
    "reasoning last": ([_ASK, _THOUGHT], None, {"add_generation_prompt": False}),
    "reasoning in the text": ([_ASK, _INLINE, _WHY], None, {}),
    "not to think": ([_ASK], None, {"enable_thinking": False}),
    "to think": ([_SYSTEM, _ASK], None, {"enable_thinking": True}),
    "to think, tools": (
        [_SYSTEM, _ASK, _THOUGHT, _WHY, _CALL, _R0],
        TOOLS,
        {"enable_thinking": True, "thinking": True, "reasoning_effort": "high"},
    ),
    "parts": ([_user(_PARTS)], None, {}),
    "parts as one": ([_user("part one\npart two")], None, {}),
    "result in parts": ([_ASK, _CALL, _result(0, _PARTS)], TOOLS, {}),
    "result in one part": ([_ASK, _CALL, _result(0, "part one\npart two")], TOOLS, {}),
    "empty": ([_user("")], None, {}),
    "no messages": ([], None, {}),
}


FITTED = {
    "developer": "system",
    "two systems": "two systems as one",
    "arguments as text": "arguments as dictionary",
    "call without content": "arguments as dictionary",
    "parts": "parts as one",
    "result in parts": "result in one part",
}
"""Cases that say the same as another one, in a form that not every template knows."""


BEGUN = ("It is 21", "Sure, ", "  Two\n\nparagraphs\n")
"""Beginnings of answers that a model is to continue."""


def begun(text: str) -> list[dict[str, Any]]:
    return [copy.deepcopy(_ASK), {"role": "assistant", "content": text}]


def words(case: str) -> list[str]:
    """What a prompt must say: texts of the messages, names and arguments of calls."""
    found: list[str] = []
    for message in CASES[case][0]:
        content = message["content"] or ""
        found += [part["text"] for part in content] if isinstance(content, list) else [content]
        for call in message.get("tool_calls", ()):
            arguments = call["function"]["arguments"]
            arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
            found += [call["function"]["name"], arguments["city"]]
    return [text.strip().rpartition("\n")[2] for text in found if text.strip()]


def variables(case: str) -> dict[str, Any]:
    """What a template gets for a case, its own to change; the day is always the same."""
    messages, tools, others = copy.deepcopy(CASES[case])
    return {"add_generation_prompt": True, **TOKENS, **others, "strftime_now": DAY.strftime} | {
        "messages": messages,
        "tools": tools,
    }
