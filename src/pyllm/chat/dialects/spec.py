"""How a model writes reasoning and tool calls, as data. The parser interprets it; see `parser.py`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from functools import cached_property
from typing import Any, Literal

from pyllm.records import dataclass

Schemas = Mapping[str, Mapping[str, Any]]
Marker = tuple[str, ...]
"""A literal in pieces, between which white space may stand or miss: ("<tool_call>", "<function=")."""

_ATOMS = re.compile(r"\s+|<[^<>]*>?|\[/?[A-Z_]+\]|[^\s<>\[\]{}\"',:=]+|.", re.DOTALL)


def atoms(literal: str) -> list[str]:
    """A literal in pieces: tags, white space, words, single signs. Joined, they are the literal."""
    return _ATOMS.findall(literal)


def marker(literal: str) -> Marker:
    """A literal as a marker: its pieces, what stands side by side joined again where it isn't tags."""
    pieces: list[str] = []
    open_piece = False
    for atom in atoms(literal):
        tag = (atom[0] in "<[" and len(atom) > 1) or atom in "[]{}"
        if atom.isspace():
            open_piece = False
        elif open_piece and not tag:
            pieces[-1] += atom
        else:
            pieces.append(atom)
            open_piece = not tag or not atom.endswith((">", "]"))
    return tuple(pieces)


@dataclass(frozen=True)
class Reasoning:
    """Reasoning stands between `start` and `end`. Where the prompt ends with `start`, the answer begins inside."""

    start: str
    end: str


@dataclass(frozen=True)
class ObjectBody:
    """A call is one JSON object; names of its keys. With no `name`, it is {name: arguments}."""

    name: str = "name"
    arguments: str = "arguments"
    id: str | None = None


@dataclass(frozen=True)
class KeyForm:
    """What stands between a key and its value, and ends the value. `kind` is what it says of the value, if anything."""

    close: str
    value_open: Marker = ()
    value_close: str = ""
    kind: Literal["string", "json"] | None = None


@dataclass(frozen=True)
class JsonArguments:
    """Arguments are a JSON object."""


@dataclass(frozen=True)
class TaggedArguments:
    """Each argument is a key and a value in tags; `pad` is put around each value. Strings are raw."""

    key_open: str
    forms: tuple[KeyForm, ...]
    pad: str = ""


FIELDS = ("name", "id", "index")


@dataclass(frozen=True)
class HeadBody:
    """A call is its name, and its id, between literals, then arguments.

    `parts` are "name", "id", "index" (which says nothing) and literals in the order in which they come. `name_in_id`
    finds the name (group 1) in an id that holds it.
    """

    parts: tuple[str, ...]
    arguments: JsonArguments | TaggedArguments = JsonArguments()
    name_in_id: str = ""


@dataclass(frozen=True)
class LiteralBody:
    """Calls as a language writes them: `before`, the name, then keys and values from `open` to `close`.

    `assign` stands between a key and its value, ":" within the values. Strings are read in any of `quotes` and written
    in the first; in those of more than one character nothing is escaped. `words` are true, false and null. If `listed`
    calls are written as a list, and may be read alone. With `plain_keys` keys within values have no quotes.
    """

    open: str
    close: str
    assign: str
    before: Marker = ()
    quotes: tuple[str, ...] = ('"', "'")
    words: tuple[str, str, str] = ("true", "false", "null")
    listed: bool = False
    plain_keys: bool = False


@dataclass(frozen=True)
class NestedBody:
    """A call is its name, `after_name`, and arguments as nested tags: `mark` stands before each of them.

    Items of a list are in tags named `item`. Strings are raw; what has no tags may be JSON.
    """

    after_name: str
    mark: str
    item: str = "item"


@dataclass(frozen=True)
class Calls:
    """Tool calls: a section of calls, each from `start` to `end`. Where a part is empty, nothing is written there.

    A call without start and section is one that the answer begins with (`bare`); what isn't the call of a known tool is
    then text like any other.
    """

    body: ObjectBody | HeadBody | LiteralBody | NestedBody
    start: Marker = ()
    end: Marker = ()
    section_start: Marker = ()
    section_end: Marker = ()
    separator: str = ""
    bare: bool = False

    @property
    def opening(self) -> Marker:
        return self.section_start or self.start


@dataclass(frozen=True)
class Channels:
    """The answer is messages: a header up to `header_end` says what each is, one of `ends` ends it.

    `reasoning` and `call` are patterns looked for in a header; `call` has the tool's name as group 1. What fits neither
    is text. `opens` begin a header, and so does one of `begins` at an answer's beginning; "" is always there. With
    `known_only` a header that neither `text` fits nor names a tool is text itself.

    How they are written: `calls` are the headers of a call, of literals and "name", `thoughts` and `texts` those of
    reasoning and text, and `between` stands between two messages.
    """

    opens: tuple[str, ...]
    header_end: str
    ends: tuple[str, ...] = ()
    begins: tuple[str, ...] = ()
    reasoning: str = ""
    call: str = ""
    text: str = ""
    known_only: bool = False
    calls: tuple[tuple[str, ...], ...] = ()
    thoughts: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    between: str = ""


@dataclass(frozen=True)
class DialectSpec:
    """A dialect. `source` says where it comes from: "derived", "hand-written", "fallback" or "text only".

    `header` is what the prompt ends with where an answer begins, `prefix` what the prompt adds to that by default: it
    counts as the answer's beginning. `turn_ends` are what the template may write after an answer, `silent` what an
    answer holds beside its words (the marks around a text). With `trim` white space around a text is none of it.
    """

    source: Literal["derived", "hand-written", "fallback", "text only"]
    reasoning: Reasoning | None = None
    calls: Calls | None = None
    channels: Channels | None = None
    silent: tuple[str, ...] = ()
    header: str = ""
    prefix: str = ""
    turn_ends: tuple[str, ...] = ()
    trim: bool = False
    ids: Literal["hex", "nine"] = "hex"

    @cached_property
    def literals(self) -> frozenset[str]:
        """Every literal of the dialect."""
        found: list[str] = [*self.silent]
        if self.reasoning is not None:
            found += [self.reasoning.start, self.reasoning.end]
        if (c := self.calls) is not None:
            found += [*c.start, *c.end, *c.section_start, *c.section_end]
            if isinstance(c.body, HeadBody):
                found += [p for p in c.body.parts if p not in FIELDS]
                if isinstance(c.body.arguments, TaggedArguments):
                    found.append(c.body.arguments.key_open)
                    for form in c.body.arguments.forms:
                        found += [form.close, *form.value_open, form.value_close]
            elif isinstance(c.body, LiteralBody):
                found += [quote for quote in c.body.quotes if len(quote) > 1]
            elif isinstance(c.body, NestedBody):
                found.append(c.body.mark)
        if (ch := self.channels) is not None:
            found += [*ch.opens, ch.header_end, *ch.ends]
        return frozenset(text for text in found if text)


def changed(value: Any, change: Callable[[str], str]) -> Any:
    """A spec, or a part of one, with every text changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, tuple):
        return tuple(changed(entry, change) for entry in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: changed(getattr(value, f.name), change) for f in fields(value)})
    return value


TEXT_ONLY = DialectSpec("text only")
