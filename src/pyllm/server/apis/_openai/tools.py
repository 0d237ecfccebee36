"""Tools and the choice among them, as the two APIs of OpenAI's write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pyllm.server.problems import refuse

Tool = Mapping[str, Any]


def checked(tools: Sequence[Tool] | None) -> list[Tool] | None:
    """The functions of a chat's `tools`; None without any. Raises ProblemError where one is something else."""
    for i, tool in enumerate(tools or ()):
        kind = tool.get("type", "function")
        if kind != "function":
            raise refuse(f"tools[{i}] is of the type {str(kind)[:60]!r}; tools are functions here", f"tools[{i}].type")
        if not name_of(tool):
            raise refuse(f"tools[{i}] must have a function with a name", f"tools[{i}].function.name")
    return list(tools) if tools else None


def name_of(tool: Tool) -> str:
    """The name of a tool's function, whether it is in `function` or beside the type; "" without one."""
    inner = tool.get("function", tool)
    name = inner.get("name") if isinstance(inner, Mapping) else None
    return name if isinstance(name, str) else ""


def chosen(choice: str | Mapping[str, Any] | None, tools: list[Tool] | None) -> tuple[str, list[Tool] | None]:
    """A `tool_choice` in pyllm's form ("auto", "none", "required", a name), and the tools that it leaves.

    Raises ProblemError.
    """
    if choice is None or not tools:
        if choice in (None, "auto", "none"):
            return "auto", tools
        raise refuse("tool_choice needs tools, and there are none", "tool_choice")
    if isinstance(choice, Mapping):
        if choice.get("type") == "allowed_tools":
            return _allowed(choice.get("allowed_tools", choice), tools)
        choice = name_of(choice)
    names = [name_of(tool) for tool in tools]
    if choice not in ("auto", "none", "required", *names):
        raise refuse(
            f"tool_choice must be auto, none, required, or one of the tools: {', '.join(names)[:300]}", "tool_choice"
        )
    return choice, tools


def _allowed(allowed: Any, tools: list[Tool]) -> tuple[str, list[Tool] | None]:
    named = allowed.get("tools") if isinstance(allowed, Mapping) else None
    names = [name_of(tool) for tool in named or () if isinstance(tool, Mapping)]
    left = [tool for tool in tools if name_of(tool) in names]
    if not left:
        raise refuse("tool_choice must allow one of the tools at least", "tool_choice")
    return ("required" if allowed.get("mode") == "required" else "auto"), left
