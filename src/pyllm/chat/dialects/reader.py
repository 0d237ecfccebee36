"""Text that arrives piece by piece, read by generators: they yield where they need more, and go on when it is there."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Iterable

CONTROL = "\udcff"
"""Stands before the text of a control token. A lone surrogate, which no text that a model writes can hold."""

MAX_SPACE = 64
"""Characters of white space that are held back for what may follow; a model that writes thousands does so for good."""

Sink = Callable[[str], None]
Steps = Generator[None, None, None]
Text = Generator[None, None, str]

_IN_STRING = re.compile(r'["\\\x00-\x1f]')
_OUTSIDE = re.compile(r"[\s\d+\-.eE:,truefalsn]*")
_SCALAR_END = re.compile(r"[\s,\]}<]")
_NO_SPACE = re.compile(r"\S")
_CLOSES = {"{": "}", "[": "]"}


class Malformed(Exception):
    """What the model wrote isn't what its dialect has there; the text says what is wrong."""


class CutOff(Malformed):
    """The answer ended in the middle."""

    def __init__(self) -> None:
        super().__init__("the answer ended inside the call")


def _space_after(text: str) -> int:
    """How many characters at the end of `text` are white space, of MAX_SPACE."""
    last = text[-MAX_SPACE:]
    return len(last) - len(last.rstrip())


def clean(text: str) -> str:
    return text.replace(CONTROL, "")


class Markers:
    """Literals to look for together: the first one in a text, the longest where several begin at one place."""

    def __init__(self, literals: Iterable[str]) -> None:
        self.literals = sorted({text for text in literals if text}, key=len, reverse=True)
        self.longest = len(self.literals[0]) if self.literals else 0
        # What an ordinary literal matches must not be the text of a control token.
        either = "|".join(("" if m[0] == CONTROL else f"(?<!{CONTROL})") + re.escape(m) for m in self.literals)
        self._pattern = re.compile(either) if self.literals else None

    def find(self, text: str) -> re.Match[str] | None:
        return None if self._pattern is None else self._pattern.search(text)

    def may_grow(self, found: re.Match[str], text: str) -> bool:
        """Whether with more text a longer marker could stand where one was found."""
        rest = text[found.start() :]
        return any(len(m) > len(rest) and m.startswith(rest) for m in self.literals)

    def held(self, text: str) -> int:
        """How many characters at the end of `text` could be the beginning of a marker."""
        longest = 0
        for m in self.literals:
            for n in range(min(len(m) - 1, len(text)), longest, -1):
                if text.endswith(m[:n]):
                    longest = n
                    break
        return longest


class Reader:
    """The text that has come and isn't read yet.

    `raw`, if a list, gets a copy of all that is read. `gap` is white space that `until` last left out before a marker.
    """

    def __init__(self) -> None:
        self.buffer = ""
        self.ended = False
        self.raw: list[str] | None = None
        self.gap = ""

    def take(self, n: int) -> str:
        taken, self.buffer = self.buffer[:n], self.buffer[n:]
        if self.raw is not None:
            self.raw.append(taken)
        return taken

    def until(self, markers: Markers, sink: Sink, *, hold_space: bool = False) -> Text:
        """Hands what comes before the first marker to `sink`; the marker, read, or "" at the end of all.

        With `hold_space` white space waits for what comes after it: before a marker it is read and not handed on, up to
        MAX_SPACE characters of it.
        """
        while True:
            found = markers.find(self.buffer)
            if found is not None and (self.ended or not markers.may_grow(found, self.buffer)):
                before = self.take(found.start())
                kept = before[: len(before) - _space_after(before)] if hold_space else before
                self.gap = before[len(kept) :]
                if kept:
                    sink(kept)
                return self.take(len(found[0]))
            if self.ended:
                if rest := self.take(len(self.buffer)):
                    sink(rest)
                return ""
            n = found.start() if found is not None else len(self.buffer) - markers.held(self.buffer)
            if hold_space:
                n -= _space_after(self.buffer[:n])
            if n:
                sink(self.take(n))
            yield

    def peek(self) -> Text:
        """The next character that is no white space; white space is read. Raises CutOff at the end."""
        while True:
            found = _NO_SPACE.search(self.buffer)
            self.take(len(self.buffer) if found is None else found.start())
            if found is not None:
                return self.buffer[0]
            if self.ended:
                raise CutOff
            yield

    def at(self, *literals: str, read: bool = True) -> Text:
        """Which of the literals comes next, after white space; it is read, if asked for. "" if none, or at the end."""
        while True:
            found = _NO_SPACE.search(self.buffer)
            start = len(self.buffer) if found is None else found.start()
            rest = self.buffer[start:]
            hits = [text for text in literals if text and rest.startswith(text)]
            best = max(hits, key=len, default="")
            if self.ended or not any(len(t) > len(rest) and t.startswith(rest) for t in literals):
                if best and read:
                    self.take(start + len(best))
                return best
            yield

    def expect(self, *literals: str) -> Steps:
        """Reads the literals, one after the other, white space between them or not."""
        for text in literals:
            if not (yield from self.at(text)):
                raise self.missing(text)

    def missing(self, text: str, *others: str) -> Malformed:
        """What to raise where neither `text` nor one of the others comes next."""
        if self.ended and any(t.startswith(self.buffer.strip()) for t in (text, *others)):
            return CutOff()
        return Malformed(f"{clean(text)!r} is missing before {self.next!r}")

    @property
    def next(self) -> str:
        """The next character that is no white space; not more, so that reasons don't depend on how text arrives."""
        return clean(self.buffer).lstrip()[:1]

    # --- JSON

    def json_string(self) -> Text:
        """A string, decoded."""
        pieces: list[str] = []
        if (yield from self.peek()) != '"':
            raise Malformed(f"a JSON string is missing before {self.next!r}")
        yield from self.json(pieces.append)
        try:
            return str(json.loads("".join(pieces)))
        except ValueError:
            raise Malformed("a string is no JSON") from None

    def json(self, sink: Sink) -> Steps:
        """A JSON value, handed to `sink` as it comes, line breaks within strings escaped. Not all of it is checked."""
        first = yield from self.peek()
        if first not in '{["':
            yield from self._scalar(sink)
            return
        closing: list[str] = []
        while True:
            if not self.buffer:
                if self.ended:
                    raise CutOff
                yield
                continue
            sign = self.buffer[0]
            if sign == '"':
                sink(self.take(1))
                yield from self._rest_of_string(sink)
            elif sign in "{[":
                closing.append(_CLOSES[sign])
                sink(self.take(1))
            elif closing and sign == closing[-1]:
                closing.pop()
                sink(self.take(1))
            else:
                found = _OUTSIDE.match(self.buffer)
                if found is None or not found[0]:
                    raise Malformed(f"the arguments are no JSON, from {self.next!r} on")
                sink(self.take(found.end()))
            if not closing:
                return

    def _scalar(self, sink: Sink) -> Steps:
        while (found := _SCALAR_END.search(self.buffer)) is None and not self.ended:
            yield
        text = self.take(len(self.buffer) if found is None else found.start())
        try:
            json.loads(text)
        except ValueError:
            raise Malformed(f"{clean(text[:20])!r} is no JSON") from None
        sink(text)

    def _rest_of_string(self, sink: Sink) -> Steps:
        while True:
            found = _IN_STRING.search(self.buffer)
            if (n := len(self.buffer) if found is None else found.start()) and (text := clean(self.take(n))):
                sink(text)
            if found is not None and found[0] == '"':
                sink(self.take(1))
                return
            if found is not None and found[0] != "\\":
                sink(json.dumps(self.take(1))[1:-1])
            elif found is not None and len(self.buffer) > 1:
                sink(self.take(2))
            elif self.ended:
                raise CutOff
            else:
                yield
