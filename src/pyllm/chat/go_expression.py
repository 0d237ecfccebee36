"""Expressions of Go's templates as those of jinja2: fields, variables, constants, and the functions of conditions."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from pyllm.errors import TemplateError
from pyllm.records import dataclass

_TOKEN = re.compile(
    r"""\s*(?:(?P<text>"(?:\\.|[^"\\\n])*"|`[^`]*`)|(?P<number>-?\d+(?:\.\d+)?)|(?P<variable>\$\w*(?:\.\w+)*)"""
    r"""|(?P<field>(?:\.\w+)+|\.)|(?P<name>[a-zA-Z]\w*)|(?P<sign>[()|]))"""
)
_ROOT = {
    "System": "system", "Prompt": "prompt", "Response": "response", "Messages": "messages", "Tools": "tools",
    "Think": "enable_thinking", "Suffix": "''", "ThinkLevel": "reasoning_effort", "IsThinkSet": "false",
}  # fmt: skip
"""What the whole template knows."""
_FIELDS = {
    "Role": "role", "Content": "content", "Thinking": "reasoning_content", "ToolCalls": "tool_calls",
    "ToolName": "name", "ToolCallID": "tool_call_id", "Function": "function", "Name": "name", "ID": "id",
    "Description": "description", "Parameters": "parameters", "Arguments": "arguments", "Type": "type",
    "Properties": "properties", "Required": "required", "Items": "items", "Enum": "enum",
}  # fmt: skip
"""Fields of messages, tools and calls."""
_SIGNS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_CONSTANTS = {"true": "true", "false": "false", "nil": "none"}


@dataclass(frozen=True, slots=True)
class Scope:
    """What "." is: a jinja2 variable, or "" for what the whole template knows."""

    dot: str
    depth: int


def words(text: str) -> str:
    """A text as a constant of jinja2."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'


def expression(source: str, scope: Scope) -> str:
    """A pipeline. Raises TemplateError for what is not known."""
    tokens: list[tuple[str, str]] = []
    at, source = 0, source.strip()
    while at < len(source):
        found = _TOKEN.match(source, at)
        if found is None:
            raise _unknown(source[at:])
        tokens.append((str(found.lastgroup), found[str(found.lastgroup)]))
        at = found.end()
    reader = _Reader(tokens, scope)
    made = reader.pipeline()
    if reader.at < len(tokens):
        raise _unknown(source)
    return made


class _Reader:
    """Reads tokens from left to right."""

    def __init__(self, tokens: Sequence[tuple[str, str]], scope: Scope) -> None:
        self._tokens = tokens
        self._scope = scope
        self.at = 0

    def pipeline(self, depth: int = 0) -> str:
        """Commands; each one's value is the last argument of the next."""
        if depth > 50:
            raise TemplateError("the template has an expression that is nested too deeply")
        made = self._command(depth)
        while self._is("|"):
            self.at += 1
            made = self._command(depth, made)
        return made

    def _command(self, depth: int, before: str | None = None) -> str:
        kind, text = self._next()
        more = [] if before is None else [before]
        if kind == "name" and text not in _CONSTANTS:
            arguments = []
            while self.at < len(self._tokens) and not self._is("|") and not self._is(")"):
                arguments.append(self._operand(*self._next(), depth))
            return _called(text, [*arguments, *more])
        if more:
            raise _unknown(text)
        return self._operand(kind, text, depth)

    def _operand(self, kind: str, text: str, depth: int) -> str:
        if kind == "text":
            return words(_unquoted(text))
        if kind == "number":
            return text
        if kind == "name" and text in _CONSTANTS:
            return _CONSTANTS[text]
        if kind == "name":
            return _called(text, [])
        if kind == "field":
            return self._field(text)
        if kind == "variable":
            return self._variable(text)
        if text == "(":
            inner = self.pipeline(depth + 1)
            if self._next() != ("sign", ")"):
                raise _unknown(text)
            inner = f"({inner})"
            # (index .Messages 0).Role: the field follows the parenthesis at once
            while (
                self.at < len(self._tokens) and self._tokens[self.at][0] == "field" and self._tokens[self.at][1] != "."
            ):
                inner += _path(self._next()[1].split(".")[1:])
            return inner
        raise _unknown(text)

    def _field(self, text: str) -> str:
        names = text.split(".")[1:]
        if self._scope.dot:
            return self._scope.dot + (_path(names) if names != [""] else "")
        return _of_root(names)

    def _variable(self, text: str) -> str:
        name, *names = text[1:].split(".")
        return f"v.x_{name}{_path(names)}" if name else _of_root(names)

    def _next(self) -> tuple[str, str]:
        if self.at == len(self._tokens):
            raise TemplateError("the template has an expression that ends too early")
        self.at += 1
        return self._tokens[self.at - 1]

    def _is(self, sign: str) -> bool:
        return self.at < len(self._tokens) and self._tokens[self.at] == ("sign", sign)


def _of_root(names: Sequence[str]) -> str:
    if not names or names[0] not in _ROOT:
        raise TemplateError(
            f"the template has .{'.'.join(names)[:60]}, which is not known; there are {', '.join(sorted(_ROOT))}"
        )
    return _ROOT[names[0]] + _path(names[1:])


def _path(names: Sequence[str]) -> str:
    return "".join(f".{_FIELDS.get(name, name.lower())}" for name in names)


def _called(name: str, given: Sequence[str]) -> str:
    """A function's call."""
    n = len(given)
    if name in ("and", "or") and n:
        return "(" + f" {name} ".join(given) + ")"
    if name == "not" and n == 1:
        return f"(not {given[0]})"
    if name == "eq" and n > 1:
        return "(" + " or ".join(f"{given[0]} == {other}" for other in given[1:]) + ")"
    if name in _SIGNS and n == 2:
        return f"({given[0]} {_SIGNS[name]} {given[1]})"
    if name == "len" and n == 1:
        return f"({given[0]} | length)"
    if name == "index" and n > 1:
        return given[0] + "".join(f"[{at}]" for at in given[1:])
    if name == "slice" and 1 <= n <= 3:
        return f"{given[0]}[{':'.join([*given[1:], '', ''][:2])}]"
    if name == "json" and n == 1:
        return f"({given[0]} | tojson)"
    if name == "print" and n == 1:
        return given[0]
    if name == "currentDate" and not n:
        return "strftime_now('%Y-%m-%d')"
    raise TemplateError(f"the template's function {name[:40]!r} is not known with {n} arguments; write it in jinja2")


def _unquoted(text: str) -> str:
    if text.startswith("`"):
        return text[1:-1]
    try:
        return str(json.loads(text))
    except ValueError:
        raise TemplateError(f"the template has the text {text[:60]}, whose escapes are not known") from None


def _unknown(text: str) -> TemplateError:
    return TemplateError(f"the template has {text[:60]!r}, which is not understood; write it in jinja2")
