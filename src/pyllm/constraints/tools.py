"""Calls of tools as a grammar: in the form of the model's dialect, with arguments that fit the tools' schemas."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyllm.chat.dialects.spec import Calls, HeadBody, Marker, ObjectBody, TaggedArguments, WholeBody
from pyllm.constraints import schema as schemas
from pyllm.constraints.grammar import Grammar, text_literal
from pyllm.constraints.tagged import TaggedWriter
from pyllm.errors import RequestError
from pyllm.tokenizers import Tokenizer

MAX_TOOLS = 500
MAX_CALLS = 16
"""In one answer; some models never stop calling."""

_IDS = {"hex": "[A-Za-z0-9_-]{1,40}", "nine": "[A-Za-z0-9]{9}"}
_ANY: dict[str, Any] = {"type": "object"}


@dataclass(frozen=True)
class _Tool:
    name: str
    arguments: Any
    """Their schema, all of which can be held, or be held as far as `lenient` goes."""
    lenient: bool


def can_hold(calls: Calls | None) -> bool:
    """Whether a dialect's calls have a grammar: those with arguments in JSON or in tags do."""
    return calls is not None and isinstance(calls.body, ObjectBody | HeadBody)


def of_tools(
    tools: Sequence[Mapping[str, Any]],
    calls: Calls,
    tokenizer: Tokenizer,
    *,
    only: str | None = None,
    parallel: bool = True,
    ids: str = "hex",
) -> Grammar:
    """The grammar of one call or more, from the first call's or the section's beginning to the end of the last.

    `tools` are in OpenAI's form; `only`: the name of the one to call. `parallel`: further calls may follow. `ids`: the
    form of ids, "hex" or "nine". A tool that says "strict" is held as it is. Of others, keywords that cannot be held
    are ignored, and if nothing helps, any JSON object will do; `warnings` say so.

    Raises RequestError for a dialect without such a grammar, an unknown name, and a strict tool that cannot be held.
    """
    if not can_hold(calls):
        raise RequestError(
            "this model writes calls of tools in a form that no grammar holds yet; tool_choice must be auto or none"
        )
    made, warnings = _read(tools, only)
    writer = _Writer(tokenizer, calls, ids)
    rules = [f"t{i}: {writer.call(tool)}" for i, tool in enumerate(made)]
    one = "(" + " | ".join(f"t{i}" for i in range(len(made))) + ")"
    between = f"WS? {writer.text(calls.separator)} WS?" if calls.separator else "WS?"
    several = f"{one} ({between} {one}){{0,{MAX_CALLS - 1}}}" if parallel else one
    around = (writer.marker(calls.section_start), several, writer.marker(calls.section_end))
    start = " WS? ".join(part for part in around if part)
    if writer.tagged is not None:
        rules += writer.tagged.rules
        warnings += writer.tagged.warnings
    text = "\n".join([f"start: {start}", *rules, r"WS: /[ \t\r\n]{1,4}/"])
    return Grammar(json.dumps({"grammars": [{"lark_grammar": text}]}), "tools", tuple(warnings))


class _Writer:
    def __init__(self, tokenizer: Tokenizer, calls: Calls, ids: str) -> None:
        self._tokenizer, self._calls, self._id = tokenizer, calls, _IDS[ids]
        self.tagged: TaggedWriter | None = None
        if isinstance(calls.body, HeadBody) and isinstance(calls.body.arguments, TaggedArguments):
            self.tagged = TaggedWriter(calls.body.arguments, self.text)

    def call(self, tool: _Tool) -> str:
        """A call of a tool, in Lark's notation."""
        calls, body = self._calls, self._calls.body
        start = self.marker(calls.start)
        if start and calls.bare:
            start = f"({start})?"
        assert not isinstance(body, WholeBody), "such calls are refused before"
        inner = self._object(tool, body) if isinstance(body, ObjectBody) else self._head(tool, body)
        if start:
            # Nothing comes between `<function=` and the name.
            open_tag = isinstance(body, HeadBody) and not calls.start[-1].endswith((">", "]"))
            inner = f"{start} {inner}" if open_tag else f"{start} WS? {inner}"
        end = self.marker(calls.end)
        return f"{inner} WS? {end}" if end else inner

    def marker(self, marker: Marker) -> str:
        return " WS? ".join(map(self.text, marker))

    def text(self, text: str) -> str:
        """A literal: control tokens in it are those tokens."""
        control = self._tokenizer.is_special
        merged: list[str] = []
        literal = ""
        for piece in self._tokenizer.partition(text, parse_special=True):
            if isinstance(piece, int) and control(piece):
                merged += [text_literal(literal)] if literal else []
                merged.append(f"<[{piece}]>")
                literal = ""
            else:
                literal += piece if isinstance(piece, str) else self._tokenizer.token_bytes(piece).decode()
        merged += [text_literal(literal)] if literal else []
        return " ".join(merged)

    def _object(self, tool: _Tool, body: ObjectBody) -> str:
        if not body.name:
            return _json(_object_of({tool.name: tool.arguments}), tool)
        entries: dict[str, Any] = {body.name: {"const": tool.name}, body.arguments: tool.arguments}
        if body.id is not None:
            entries[body.id] = {"type": "string", "pattern": f"^{self._id}$"}
        return _json(_object_of(entries), tool)

    def _head(self, tool: _Tool, body: HeadBody) -> str:
        parts: list[str] = []
        literal = ""
        for part in body.parts:
            if part == "name":
                literal += tool.name
            elif part == "id" and body.name_in_id:
                literal, pattern = literal + self._named_id(tool.name, body.name_in_id), "/[0-9]{1,3}/"
                parts += [self.text(literal)] + ([pattern] if literal.endswith(":") else [])
                literal = ""
            elif part in ("id", "index"):
                parts += [self.text(literal)] if literal else []
                parts.append(f"/{self._id}/" if part == "id" else "/[0-9]{1,3}/")
                literal = ""
            else:
                literal += part
        parts += [self.text(literal)] if literal else []
        if self.tagged is None:
            return " ".join([*parts, "WS?", _json(tool.arguments, tool)])
        return " ".join([*parts, "WS?", self.tagged.arguments(tool.arguments, tool.name)])

    @staticmethod
    def _named_id(name: str, pattern: str) -> str:
        """An id that holds the name, up to its number: `functions.NAME:`, where the dialect reads that."""
        found = re.fullmatch(pattern, f"functions.{name}:0")
        return f"functions.{name}:" if found is not None and found[1] == name else name


def _read(tools: Sequence[Mapping[str, Any]], only: str | None) -> tuple[list[_Tool], list[str]]:
    """The tools that may be called, and what of them is not held."""
    made: list[_Tool] = []
    warnings: list[str] = []
    if len(tools) > MAX_TOOLS:
        raise RequestError(f"there are {len(tools)} tools; {MAX_TOOLS} are allowed")
    names = [str(tool.get("function", tool).get("name", "")) for tool in tools]
    if only is not None and only not in names:
        raise RequestError(f"tool_choice names {only!r}, and there is no such tool; there are {', '.join(names)}")
    for name, tool in zip(names, tools, strict=True):
        if only is not None and name != only:
            continue
        function = tool.get("function", tool)
        arguments = function.get("parameters") or {"type": "object", "properties": {}}
        if isinstance(arguments, Mapping) and "type" not in arguments:
            arguments = {**arguments, "type": "object"}
        try:
            held = schemas.hold(arguments, f"tool {name}", strict=function.get("strict") is True)
        except RequestError as error:
            if function.get("strict") is True:
                raise
            warnings.append(f"{error}; any JSON object will do")
            made.append(_Tool(name, _ANY, lenient=False))
            continue
        warnings += held.warnings
        made.append(_Tool(name, arguments, lenient=bool(held.warnings)))
    if not made:
        raise RequestError("tool_choice needs tools, and there are none")
    return made, warnings


def _object_of(entries: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of an object with just these properties; references of their schemas lead to the same places."""
    moved = {key: _rebased(entry, f"#/properties/{schemas.escaped(key)}") for key, entry in entries.items()}
    return {"type": "object", "properties": moved, "required": [*moved], "additionalProperties": False}


def _rebased(value: Any, root: str) -> Any:
    if isinstance(value, Mapping):
        return {
            key: root + entry[1:] if key == "$ref" and isinstance(entry, str) else _rebased(entry, root)
            for key, entry in value.items()
        }
    return [_rebased(entry, root) for entry in value] if isinstance(value, list) else value


def _json(schema: Any, tool: _Tool) -> str:
    held = schemas.hold(schema, f"tool {tool.name}", strict=not tool.lenient)
    return "%json " + json.dumps(json.loads(held.grammar)["grammars"][0]["json_schema"])
