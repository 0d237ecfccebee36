"""Calls of tools as a grammar: in the form of the model's dialect, with arguments that fit the tools' schemas."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from pyllm.chat.dialects.spec import (
    Calls,
    Channels,
    HeadBody,
    LiteralBody,
    Marker,
    NestedBody,
    ObjectBody,
    TaggedArguments,
)
from pyllm.constraints import channels
from pyllm.constraints import schema as schemas
from pyllm.constraints.grammar import Grammar, lark_source, text_literal
from pyllm.constraints.literal import LiteralWriter
from pyllm.constraints.nested import NestedWriter
from pyllm.constraints.rules import SPACE, Rules, several
from pyllm.constraints.tagged import TaggedWriter
from pyllm.errors import RequestError
from pyllm.records import dataclass
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
    strict: bool = False
    """Whether it is refused where it cannot be held."""


def of_tools(
    tools: Sequence[Mapping[str, Any]],
    form: Calls | Channels,
    tokenizer: Tokenizer,
    *,
    only: str | None = None,
    parallel: bool = True,
    required: bool = True,
    ids: str = "hex",
) -> Grammar:
    """The grammar of one call or more, from the first call's or the section's beginning to the end of the last.

    In channels it is the grammar of the whole answer, with no call if none is `required`.

    `tools` are in OpenAI's form; `only`: the name of the one to call. `parallel`: further calls may follow. `ids`: the
    form of ids, "hex" or "nine". A tool that says "strict" is held as it is. Of others, keywords that cannot be held
    are ignored, and if nothing helps, any JSON object will do; `warnings` say so.

    Raises RequestError for an unknown name, and a strict tool that cannot be held.
    """
    made, warnings = _read(tools, only)
    rules = Rules(partial(_literal, tokenizer))
    most = MAX_CALLS if parallel else 1
    if isinstance(form, Channels):
        arguments = [(tool.name, rules.rule("arguments", _json(tool.arguments, tool))) for tool in made]
        start = channels.answer(form, rules, arguments, most, required=required)
    else:
        start = _calls(form, [*map(_Writer(form, rules, ids).call, made)], rules, most)
    text = "\n".join([f"start: {start}", *rules.lines, r"WS: /[ \t\r\n]{1,4}/"])
    return Grammar(lark_source(text), "tools", tuple(dict.fromkeys([*warnings, *rules.warnings])))


def _calls(form: Calls, calls: Sequence[str], rules: Rules, most: int) -> str:
    """Up to `most` calls, with the section around them."""
    one = rules.rule("call", " | ".join(calls))
    body = form.body
    if isinstance(body, LiteralBody) and body.listed:
        comma = f'"," {SPACE}'
        made = f'{_marker(form.start, rules)} "[" {several(one, comma, most)} "]" {_marker(form.end, rules)}'
    else:
        made = several(one, f"{SPACE} {rules.text(form.separator)} {SPACE}" if form.separator else SPACE, most)
    start = _marker(form.section_start, rules)
    if form.bare and form.start:
        start = f"({_marker(form.start, rules)})?"
    around = (start, made, _marker(form.section_end, rules))
    return f" {SPACE} ".join(part for part in around if part)


def _marker(marker: Marker, rules: Rules) -> str:
    return f" {SPACE} ".join(map(rules.text, marker))


def _literal(tokenizer: Tokenizer, text: str) -> str:
    """A literal: control tokens in it are those tokens."""
    merged: list[str] = []
    literal = ""
    for piece in tokenizer.partition(text, parse_special=True):
        if isinstance(piece, int) and tokenizer.is_special(piece):
            merged += [text_literal(literal)] if literal else []
            merged.append(f"<[{piece}]>")
            literal = ""
        else:
            literal += piece if isinstance(piece, str) else tokenizer.token_bytes(piece).decode()
    merged += [text_literal(literal)] if literal else []
    return " ".join(merged)


class _Writer:
    def __init__(self, calls: Calls, rules: Rules, ids: str) -> None:
        self._calls, self._rules, self._id = calls, rules, _IDS[ids]
        self._text, self._inner = rules.text, self._of_body(calls.body)

    def _of_body(self, body: ObjectBody | HeadBody | LiteralBody | NestedBody) -> Callable[[_Tool], str]:
        """Writes what stands between a call's start and end."""
        if isinstance(body, LiteralBody):
            literal = LiteralWriter(body, self._rules)
            return lambda tool: literal.call(tool.name, tool.arguments, strict=tool.strict)
        if isinstance(body, NestedBody):
            nested = NestedWriter(body, self._rules)
            return lambda tool: nested.call(tool.name, tool.arguments)
        if isinstance(body, ObjectBody):
            return partial(self._object, body=body)
        tagged = TaggedWriter(body.arguments, self._rules) if isinstance(body.arguments, TaggedArguments) else None
        return partial(self._head, body=body, tagged=tagged)

    def call(self, tool: _Tool) -> str:
        """A call of a tool, in Lark's notation; one in a list without the marks around that."""
        calls, body, inner = self._calls, self._calls.body, self._inner(tool)
        if isinstance(body, LiteralBody) and body.listed:
            return inner
        if start := "" if calls.bare else _marker(calls.start, self._rules):
            # Nothing comes between `<function=` and the name.
            open_tag = not isinstance(body, ObjectBody) and not calls.start[-1].endswith((">", "]"))
            inner = f"{start} {inner}" if open_tag else f"{start} {SPACE} {inner}"
        end = _marker(calls.end, self._rules)
        return f"{inner} {SPACE} {end}" if end else inner

    def _object(self, tool: _Tool, body: ObjectBody) -> str:
        if not body.name:
            return _json(_object_of({tool.name: tool.arguments}), tool)
        entries: dict[str, Any] = {body.name: {"const": tool.name}, body.arguments: tool.arguments}
        if body.id is not None:
            entries[body.id] = {"type": "string", "pattern": f"^{self._id}$"}
        return _json(_object_of(entries), tool)

    def _head(self, tool: _Tool, body: HeadBody, tagged: TaggedWriter | None) -> str:
        parts: list[str] = []
        literal = ""
        for part in body.parts:
            if part == "name":
                literal += tool.name
            elif part == "id" and body.name_in_id:
                literal, pattern = literal + self._named_id(tool.name, body.name_in_id), "/[0-9]{1,3}/"
                parts += [self._text(literal)] + ([pattern] if literal.endswith(":") else [])
                literal = ""
            elif part in ("id", "index"):
                parts += [self._text(literal)] if literal else []
                parts.append(f"/{self._id}/" if part == "id" else "/[0-9]{1,3}/")
                literal = ""
            else:
                literal += part
        parts += [self._text(literal)] if literal else []
        if tagged is None:
            return " ".join([*parts, SPACE, _json(tool.arguments, tool)])
        return " ".join([*parts, SPACE, tagged.arguments(tool.arguments, tool.name)])

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
        made.append(_Tool(name, arguments, bool(held.warnings), function.get("strict") is True))
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
