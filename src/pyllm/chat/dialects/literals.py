"""Values as models write them: JSON, Python's literals, Gemma's quotes. One tolerant reader for all."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pyllm.chat.dialects.reader import clean
from pyllm.chat.dialects.spec import LiteralBody

_WORDS = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}
_NUMBER = re.compile(r"[+-]?(\d+(_\d+)*)?(\.\d*)?([eE][+-]?\d+)?")
NAME = re.compile(r"[^\W\d][\w.\-]*")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "0": "\0", "\n": ""}
_ESCAPES |= {sign: sign for sign in "\\/\"'"}
_HEX = {"x": 2, "u": 4, "U": 8}
MAX_DEPTH = 64


class OpenString(ValueError):
    """The text ends within a string."""

    def __init__(self) -> None:
        super().__init__("a string has no end")


class LiteralReader:
    """Reads values out of `text` from `at` on. Every method raises ValueError where the text isn't what it reads.

    `quotes` are what strings may stand in; in those of more than one character nothing is escaped.
    """

    def __init__(self, text: str, quotes: tuple[str, ...] = ('"', "'")) -> None:
        self.text = text
        self.at = 0
        self._quotes = quotes

    def skip(self) -> None:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1

    def sees(self, sign: str) -> bool:
        """Whether `sign` comes next; it is then read."""
        self.skip()
        if self.text.startswith(sign, self.at):
            self.at += len(sign)
            return True
        return False

    def want(self, sign: str) -> None:
        if not self.sees(sign):
            raise ValueError(f"{sign!r} is missing at {self.text[self.at : self.at + 20]!r}")

    def name(self) -> str:
        self.skip()
        if (found := NAME.match(self.text, self.at)) is None:
            raise ValueError(f"a name is missing at {self.text[self.at : self.at + 20]!r}")
        self.at = found.end()
        return found[0]

    def end(self) -> None:
        self.skip()
        if self.at < len(self.text):
            raise ValueError(f"{self.text[self.at : self.at + 20]!r} is one too many")

    def value(self, depth: int = 0) -> Any:
        if depth > MAX_DEPTH:
            raise ValueError("values are nested too deeply")
        if self.sees("["):
            return self._list("]", depth)
        if self.sees("("):
            return self._list(")", depth)
        if self.sees("{"):
            return self.entries("}", ":", depth)
        if (text := self._string()) is not None:
            return text
        if (found := _NUMBER.match(self.text, self.at)) is not None and any(c.isdigit() for c in found[0]):
            self.at = found.end()
            whole = found[3] is None and found[4] is None
            return int(found[0]) if whole else float(found[0])
        word = self.name()
        if word not in _WORDS:
            raise ValueError(f"{word!r} is no value")
        return _WORDS[word]

    def entries(self, close: str, between: str, depth: int = 0) -> dict[str, Any]:
        """Keys and values up to `close`; keys are strings or names."""
        found: dict[str, Any] = {}
        while not self.sees(close):
            self.skip()
            key = self._string()
            key = self.name() if key is None else key
            self.want(between)
            found[key] = self.value(depth + 1)
            if not self.sees(","):
                self.want(close)
                break
        return found

    def _list(self, close: str, depth: int) -> list[Any]:
        found: list[Any] = []
        while not self.sees(close):
            found.append(self.value(depth + 1))
            if not self.sees(","):
                self.want(close)
                break
        return found

    def _string(self) -> str | None:
        quote = next((q for q in self._quotes if self.text.startswith(q, self.at)), None)
        if quote is None:
            return None
        start = self.at + len(quote)
        if len(quote) > 1:
            stop = self.text.find(quote, start)
            if stop < 0:
                raise OpenString
            self.at = stop + len(quote)
            return clean(self.text[start:stop])
        return self._escaped(start, quote)

    def _escaped(self, start: int, quote: str) -> str:
        pieces: list[str] = []
        at = start
        while True:
            if at >= len(self.text):
                raise OpenString
            sign = self.text[at]
            if sign == quote:
                self.at = at + 1
                # A pair of surrogates is one character.
                return clean("".join(pieces)).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            if sign != "\\":
                pieces.append(sign)
                at += 1
                continue
            kind = self.text[at + 1 : at + 2]
            if kind in _HEX:
                digits = self.text[at + 2 : at + 2 + _HEX[kind]]
                pieces.append(chr(int(digits, 16)))
                at += 2 + _HEX[kind]
            else:
                # As in Python, a backslash before anything else is one.
                pieces.append(_ESCAPES.get(kind, "\\" + kind))
                at += 2


def literal(text: str) -> Any:
    """The value that `text` is. Raises ValueError where it is none."""
    reader = LiteralReader(text)
    found = reader.value()
    reader.end()
    return found


def literal_calls(text: str, body: LiteralBody) -> list[tuple[str, dict[str, Any]]]:
    """Calls with their arguments, alone or in a list. Raises ValueError where the text is none."""
    reader = LiteralReader(text, body.quotes)
    listed = body.listed and reader.sees("[")
    found = []
    while True:
        for sign in body.before:
            reader.want(sign)
        name = reader.name()
        reader.want(body.open)
        found.append((name, reader.entries(body.close, body.assign)))
        if not listed or not reader.sees(","):
            break
    if listed:
        reader.want("]")
    reader.end()
    return found


def literal_text(calls: Sequence[tuple[str, Any]], body: LiteralBody) -> str:
    """Calls as the model writes them. Arguments that are no dictionary stand as one literal."""
    before = "".join(body.before)
    written = (f"{before}{name}{body.open}{_arguments(arguments, body)}{body.close}" for name, arguments in calls)
    return f"[{', '.join(written)}]" if body.listed else "".join(written)


def _arguments(arguments: Any, body: LiteralBody) -> str:
    if not isinstance(arguments, Mapping):
        return value_text(arguments, body)
    return ", ".join(f"{key}{body.assign}{value_text(value, body)}" for key, value in arguments.items())


def value_text(value: Any, body: LiteralBody) -> str:
    """A value as the model writes it; characters of texts as they are."""
    if isinstance(value, str):
        quote = body.quotes[0]
        return json.dumps(value, ensure_ascii=False) if len(quote) == 1 else f"{quote}{value}{quote}"
    if isinstance(value, Mapping):
        keys = ((key if body.plain_keys else value_text(key, body)) for key in value)
        entries = zip(keys, value.values(), strict=True)
        return "{" + ", ".join(f"{key}: {value_text(entry, body)}" for key, entry in entries) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(value_text(entry, body) for entry in value) + "]"
    true, false, null = body.words
    return null if value is None else (true if value else false) if isinstance(value, bool) else repr(value)
