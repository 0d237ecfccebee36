"""Regular expressions of pre-tokenizers as programs; only the syntax that they use.

Alternatives in order of preference, greedy repetitions, sets of characters, and assertions about one character before
or after. A program is a list of steps; `Sets` tells which sets contain a character, by asking the `regex` package,
whose syntax this is.
"""

from __future__ import annotations

import re
from typing import Any

from pyllm.records import dataclass

_TOKEN = re.compile(
    r"\\[pP]\{\w+\}|\\u[0-9a-f]{4}|\\U[0-9a-f]{8}|\\.|\[\^?(?:\\.|[^\]\\])+\]|\(\?:|\(\?<?[=!]|\{\d+(?:,\d+)?\}|.", re.S
)
_MANY = 2048  # steps that a program may have


class Unsupported(ValueError):
    """An expression without a program in this module."""


@dataclass(frozen=True, slots=True)
class Step:
    """`kind`: "set" (a character of set `a`), "split" (try `a`, else `b`), "after"/"before" (the character there is in
    set `a`, or, with `b`, is not; there is none at an end), "end" (no character follows), "match"."""

    kind: str
    a: int = 0
    b: int = 0


class Sets:
    """The sets of characters in programs, as written in the expressions."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._compiled: list[Any] = []

    def number(self, text: str) -> int:
        import regex

        if text not in self.texts:
            self.texts.append(text)
            self._compiled.append(regex.compile(text))
        return self.texts.index(text)

    def of(self, chars: str) -> list[int]:
        """For each character, the sets that contain it, as bits."""
        found = dict.fromkeys(chars, 0)
        for i, pattern in enumerate(self._compiled):
            for char in pattern.findall(chars):
                found[char] |= 1 << i
        return [found[char] for char in chars]


def program(expression: str, sets: Sets) -> list[Step]:
    """The program of an expression. Raises Unsupported."""
    parser = _Parser(expression, sets)
    steps = [*parser.alternatives(0), Step("match")]
    if parser.left:
        raise Unsupported(f"{parser.left[-1]!r} in {expression!r}")
    return steps


class _Parser:
    """Recursive descent; each method returns the steps of the text that it read, which begin at step `at`."""

    def __init__(self, expression: str, sets: Sets) -> None:
        self.left = _TOKEN.findall(expression)[::-1]
        self._sets = sets

    def alternatives(self, at: int) -> list[Step]:
        start = self.left.copy()
        only = self._sequence(at)
        if not self._next_is("|"):
            return only
        # A branch begins after the split that offers it, so it is read again when that is known to be there.
        self.left = start
        first = self._sequence(at + 1)
        self.left.pop()
        rest_at = at + 1 + len(first) + 1
        rest = self.alternatives(rest_at)
        end = rest_at + len(rest)
        return [Step("split", at + 1, rest_at), *first, Step("split", end, end), *rest]

    def _sequence(self, at: int) -> list[Step]:
        steps: list[Step] = []
        while self.left and self.left[-1] not in "|)":
            steps += self._repeated(at + len(steps))
            if at + len(steps) > _MANY:
                raise Unsupported("too long")
        return steps

    def _repeated(self, at: int) -> list[Step]:
        start = self.left.copy()
        steps = self._atom(at)
        mark = self.left[-1] if self.left else ""
        if mark not in ("?", "*", "+") and not re.fullmatch(r"\{\d+(,\d+)?\}", mark):
            return steps
        self.left.pop()
        rest = self.left

        def again(place: int) -> list[Step]:
            self.left = start.copy()
            return self._atom(place)

        if mark == "+":
            steps = [*steps, Step("split", at, at + len(steps) + 1)]
        elif mark == "*":
            body = again(at + 1)
            steps = [Step("split", at + 1, at + len(body) + 2), *body, Step("split", at, at)]
        else:
            low, high = (0, 1) if mark == "?" else _bounds(mark)
            steps = []
            for _ in range(low):
                steps += again(at + len(steps))
            size = len(again(0)) + 1
            end = at + len(steps) + (high - low) * size
            for _ in range(high - low):
                place = at + len(steps)
                steps += [Step("split", place + 1, end), *again(place + 1)]
        self.left = rest
        return steps

    def _atom(self, at: int) -> list[Step]:
        token = self.left.pop()
        if token == "(?:":
            steps = self.alternatives(at)
            self._expect(")")
            return steps
        if token in ("(?=", "(?!", "(?<=", "(?<!"):
            one = self.alternatives(at)
            self._expect(")")
            if len(one) != 1 or one[0].kind != "set":
                raise Unsupported("an assertion about more than one character")
            return [Step("before" if "<" in token else "after", one[0].a, int("!" in token))]
        if token == "$":
            return [Step("end")]
        if token in ("(", ")", "^", ".", "?", "*", "+", "{", "|") or re.fullmatch(r"\\[bBAZzGKX0-9]", token):
            raise Unsupported(f"{token!r}")
        return [Step("set", self._sets.number(token))]

    def _next_is(self, token: str) -> bool:
        return bool(self.left) and self.left[-1] == token

    def _expect(self, token: str) -> None:
        if not self._next_is(token):
            raise Unsupported(f"{token!r} is missing")
        self.left.pop()


def _bounds(mark: str) -> tuple[int, int]:
    low, _, high = mark[1:-1].partition(",")
    return int(low), int(high or low)
