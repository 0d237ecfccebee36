"""The wire form of chats, as clients of OpenAI's interface send it, made one plain form.

What is optional there becomes one thing here: fields that are null are left out, calls have the form
{"id", "type", "function": {"name", "arguments"}}, reasoning is "reasoning_content", parts are text parts, roles of
older interfaces have their present names. Nothing is left out that says something: what a text model cannot read is an
error with its place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pyllm.errors import RequestError

_ROLES = {"function": "tool"}
_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""Types of parts that are text, and the key that holds it."""
_THOUGHT_PARTS = {"thinking": "thinking", "reasoning": "text"}
REASONING = ("reasoning_content", "reasoning", "thinking")
"""Fields that clients and templates call an assistant's reasoning by; the first is the one used here."""


def unified(messages: Sequence[Mapping[str, Any]], arguments_as_text: bool = False) -> list[dict[str, Any]]:
    """The messages in one form; `arguments_as_text` leaves arguments that are a text as they are.

    Raises RequestError where a message holds what a text model cannot read, or a call has no name.
    """
    return [_unified(f"messages[{i}]", message, arguments_as_text) for i, message in enumerate(messages)]


def unified_tools(tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Tools as {"type": "function", "function": {…}}: also those that are given as the inner one alone."""
    return [_tool(tool) for tool in tools]


def _unified(name: str, message: Mapping[str, Any], arguments_as_text: bool) -> dict[str, Any]:
    found = {key: value for key, value in message.items() if value is not None or key == "content"}
    found["role"] = _ROLES.get(found["role"], found["role"])
    given = found.pop("tool_calls", ())
    if not isinstance(given, list | tuple):
        raise RequestError(f"{name}.tool_calls must be a list of calls, not a {type(given).__name__}")
    calls = list(given)
    if "function_call" in found and not calls:
        calls = [{"function": found.pop("function_call")}]
    content, thoughts = _content(name, found.get("content"))
    if not content and isinstance(found.get("refusal"), str):
        content = found.pop("refusal")
    found["content"] = content if content is not None or calls else ""
    if calls:
        found["tool_calls"] = [_call(f"{name}.tool_calls[{i}]", c, arguments_as_text) for i, c in enumerate(calls)]
    reasoning = next((found[key] for key in REASONING if isinstance(found.get(key), str) and found[key]), thoughts)
    if found["role"] == "assistant" and reasoning:
        found.setdefault("reasoning_content", reasoning)
    return found


def _content(name: str, content: Any) -> tuple[Any, str]:
    """The content, a list of parts as text parts, and the reasoning that was among them.

    Dictionaries, and lists of what are no parts, belong to some template and are left alone.
    """
    if not isinstance(content, list | tuple):
        return content, ""
    if not all(isinstance(part, str) or (isinstance(part, Mapping) and "type" in part) for part in content):
        return content, ""
    texts, thoughts = [], []
    for i, part in enumerate(content):
        kind = "text" if isinstance(part, str) else str(part["type"])
        if isinstance(part, str):
            texts.append({"type": "text", "text": part})
        elif kind in _TEXT_PARTS and isinstance(part.get(_TEXT_PARTS[kind]), str):
            texts.append({"type": "text", "text": part[_TEXT_PARTS[kind]]})
        elif kind in _THOUGHT_PARTS and isinstance(part.get(_THOUGHT_PARTS[kind]), str):
            thoughts.append(part[_THOUGHT_PARTS[kind]])
        else:
            raise RequestError(
                f"{name} has a part of type {kind[:60]!r} at {i}; this model reads text alone: "
                "parts must be {'type': 'text', 'text': '...'}"
            )
    return texts, "\n".join(thoughts)


def _call(name: str, call: Any, arguments_as_text: bool) -> dict[str, Any]:
    inner = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise RequestError(
            f"{name} must be {{'id': '...', 'type': 'function', 'function': {{'name': '...', 'arguments': ...}}}}"
        )
    if "function" not in call:
        call = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
        inner = {key: value for key, value in inner.items() if key not in ("id", "type")}
    arguments = inner.get("arguments")
    if not arguments_as_text or not isinstance(arguments, str):
        arguments = _mapping(arguments)
    return {**call, "type": "function", "function": {**inner, "arguments": arguments}}


def _mapping(arguments: Any) -> Any:
    """Arguments of a call as the dictionary that they are the JSON text of; a text where they are of no dictionary."""
    if arguments is None or (isinstance(arguments, str) and not arguments.strip()):
        return {}
    if isinstance(arguments, str):
        try:
            found = json.loads(arguments)
        except (ValueError, RecursionError):
            return arguments
        return found if isinstance(found, dict) else arguments
    return arguments


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    if "function" in tool or not isinstance(tool.get("name"), str) or tool.get("type", "function") != "function":
        return dict(tool)
    return {"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}}
