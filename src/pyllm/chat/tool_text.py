"""Tools as plain text, for models whose template has no place for them: what they read and how they answer.

A call is a line of JSON between tags, as models trained by Hermes' form write it: <tool_call>{"name", "arguments"}.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

CALL, CALL_END = "<tool_call>", "</tool_call>"
RESULT, RESULT_END = "<tool_response>", "</tool_response>"


def described(tools: Sequence[Mapping[str, Any]], form: str = "") -> str:
    """A system text that lists the tools with their JSON schemas and says how to call them.

    `form` is a call in the template's own form, where it has one.
    """
    listed = "\n".join(_json(tool.get("function", tool)) for tool in tools)
    if form:
        how = f"write this, with the function's name and its arguments in the place of the words in capitals:\n{form}"
    else:
        how = (
            "write its name and its arguments as JSON between tags, one such block for each call, "
            f'and end your answer there:\n{CALL}\n{{"name": "...", "arguments": {{...}}}}\n{CALL_END}\n'
            f"What the function returns comes back between {RESULT} and {RESULT_END}."
        )
    return (
        "# Tools\n\n"
        "You can call these functions; each line describes one, with the JSON schema of its arguments:\n"
        f"{listed}\n\nTo call a function, {how}\nIf no function is needed, answer in plain text."
    )


def calls_text(calls: Sequence[Mapping[str, Any]]) -> str:
    """Calls {"function": {"name", "arguments"}} as the assistant writes them."""
    return "\n".join(_call_text(call["function"]) for call in calls)


def _call_text(function: Mapping[str, Any]) -> str:
    arguments = function["arguments"]
    written = arguments if isinstance(arguments, str) else _json(arguments)
    return f'{CALL}\n{{"name": {_json(function["name"])}, "arguments": {written}}}\n{CALL_END}'


def result_text(content: str) -> str:
    """What a tool returned, as a message of the user says it."""
    return f"{RESULT}\n{content}\n{RESULT_END}"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
