"""GBNF, llama.cpp's notation of grammars, as Lark.

llguidance matches what is regular by a lexer that takes the longest match, so as much as possible becomes one terminal:
whatever doesn't refer to itself, and neighbours of it. Where text is ambiguous at the border of a rule that refers to
itself, the longer terminal is taken.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import NoReturn

from pyllm.errors import RequestError
from pyllm.records import dataclass

MAX_RULES = 1000
MAX_NESTING = 50

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_TOKEN = re.compile(r"!?<(\[[0-9]+\]|[^<>\s\[\]]+)>")
_COUNT = re.compile(r"\{\s*([0-9]{1,6})\s*(,?)\s*([0-9]{0,6})\s*\}")
_GAP = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_WIDE_GAP = re.compile(r"(?:\s|#[^\r\n]*)*")
_ESCAPE = re.compile(r'\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|([nrt"\\\[\]-]))')
_LETTERS = {"n": "\n", "r": "\r", "t": "\t"}


@dataclass(frozen=True)
class _Node:
    """A part of a rule. `kind` is "literal", "class", "token", "rule", "sequence", "choice" or "repeat"."""

    kind: str
    text: str = ""
    parts: tuple[_Node, ...] = ()
    least: int = 0
    most: int | None = None


def to_lark(text: str, name: str) -> str:
    """The Lark text of a GBNF grammar. Raises RequestError with the line and column at fault."""
    return _Writer(_Reader(text, name).rules()).text()


class _Reader:
    def __init__(self, text: str, name: str) -> None:
        self._text, self._name, self._at = text, name, 0

    def rules(self) -> dict[str, _Node]:
        found: dict[str, _Node] = {}
        self._take(_WIDE_GAP)
        while self._at < len(self._text):
            rule = self._take(_NAME) or self._fail("a rule's name must come here")
            self._take(_GAP)
            if not self._next("::="):
                self._fail("::= must come here")
            self._take(_WIDE_GAP)
            found[rule] = self._choice(0)
            if self._at < len(self._text) and self._text[self._at] not in "\r\n":
                self._fail("this fits no rule")
            self._take(_WIDE_GAP)
            if len(found) > MAX_RULES:
                self._fail(f"there are more than {MAX_RULES} rules")
        if "root" not in found:
            raise RequestError(f"{self._name} has no rule 'root', with which a GBNF grammar begins")
        if missing := sorted({node.text for node in _inner(*found.values()) if node.kind == "rule"} - found.keys()):
            raise RequestError(f"{self._name} has no rule {missing[0]!r}, which another rule names")
        return found

    def _choice(self, nesting: int) -> _Node:
        if nesting > MAX_NESTING:
            self._fail(f"parentheses are nested more than {MAX_NESTING} deep")
        gap = _WIDE_GAP if nesting else _GAP
        ways = [self._sequence(nesting, gap)]
        while self._next("|"):
            self._take(_WIDE_GAP)
            ways.append(self._sequence(nesting, gap))
        return ways[0] if len(ways) == 1 else _Node("choice", parts=tuple(ways))

    def _sequence(self, nesting: int, gap: re.Pattern[str]) -> _Node:
        parts: list[_Node] = []
        while (part := self._item(nesting)) is not None:
            self._take(gap)
            parts.append(self._repeated(part))
            self._take(gap)
        return parts[0] if len(parts) == 1 else _Node("sequence", parts=tuple(parts))

    def _item(self, nesting: int) -> _Node | None:
        if self._next('"'):
            return _Node("literal", self._until('"', lambda character: character))
        if self._next("["):
            negated = "^" if self._next("^") else ""
            return _Node("class", f"[{negated}{self._until(']', _in_class, ranges=True)}]")
        if self._next("("):
            self._take(_WIDE_GAP)
            inner = self._choice(nesting + 1)
            if not self._next(")"):
                self._fail(") must come here")
            return inner
        if self._next("."):
            return _Node("class", "(?s:.)")
        if self._text.startswith(("<", "!<"), self._at):
            token = self._take(_TOKEN) or self._fail("a token is written <name> or <[id]>")
            if token.startswith("!"):
                self._fail("all tokens but one (!<…>) cannot be held")
            return _Node("token", token)
        rule = self._take(_NAME)
        return _Node("rule", rule) if rule else None

    def _repeated(self, part: _Node) -> _Node:
        for sign, least, most in (("*", 0, None), ("+", 1, None), ("?", 0, 1)):
            if self._next(sign):
                return _Node("repeat", parts=(part,), least=least, most=most)
        if self._text.startswith("{", self._at):
            found = _COUNT.match(self._text, self._at) or self._fail("a count is written {2}, {2,} or {2,5}")
            self._at = found.end()
            least = int(found[1])
            return _Node(
                "repeat", parts=(part,), least=least, most=int(found[3]) if found[3] else None if found[2] else least
            )
        return part

    def _until(self, end: str, put: Callable[[str], str], ranges: bool = False) -> str:
        """The characters before `end`, escapes read; `put` writes each one, but the dash between two of a range."""
        made: list[str] = []
        while not self._next(end):
            character = self._text[self._at : self._at + 1]
            if character in ("", "\n", "\r"):
                self._fail(f"{end} must come before the line's end")
            if character == "\\":
                found = _ESCAPE.match(self._text, self._at) or self._fail("no such escape")
                self._at = found.end()
                code = found[1] or found[2] or found[3]
                if code and (int(code, 16) > 0x10FFFF or 0xD800 <= int(code, 16) < 0xE000):
                    self._fail("no such character")
                made.append(put(chr(int(code, 16)) if code else _LETTERS.get(found[4], found[4])))
                continue
            self._at += 1
            within = ranges and character == "-" and made and not self._text.startswith(end, self._at)
            made.append("-" if within else put(character))
        return "".join(made)

    def _take(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text, self._at)
        if found is None:
            return ""
        self._at = found.end()
        return found[0]

    def _next(self, text: str) -> bool:
        here = self._text.startswith(text, self._at)
        if here:
            self._at += len(text)
        return here

    def _fail(self, words: str) -> NoReturn:
        line = self._text.count("\n", 0, self._at) + 1
        column = self._at - (self._text.rfind("\n", 0, self._at) + 1) + 1
        raise RequestError(f"{self._name}, line {line}, column {column}: {words}")


class _Writer:
    """Lark of rules. Names of rules become R0, R1, … for terminals, r0, r1, … for others, so that none collide."""

    def __init__(self, rules: dict[str, _Node]) -> None:
        self._rules = rules
        self._regular = self._find_regular()
        self._names = {rule: f"{'R' if rule in self._regular else 'r'}{i}" for i, rule in enumerate(rules)}
        self._made: list[str] = []

    def text(self) -> str:
        lines = [f"start: {self._names['root']}"]
        for rule, node in self._rules.items():
            lines.append(f"{self._names[rule]}: {self._terminal(node) if rule in self._regular else self._rule(node)}")
        return "\n".join([*lines, *self._made])

    def _find_regular(self) -> set[str]:
        """Rules that lead neither to themselves nor to tokens: removed are those that wait for others for ever."""
        needs = {
            rule: {n.text for n in _inner(node) if n.kind == "rule"} | {"" for n in _inner(node) if n.kind == "token"}
            for rule, node in self._rules.items()
        }
        regular: set[str] = set()
        while more := [rule for rule in needs if rule not in regular and needs[rule] <= regular]:
            regular.update(more)
        return regular

    def _is_regular(self, node: _Node) -> bool:
        return all(n.kind != "token" and (n.kind != "rule" or n.text in self._regular) for n in _inner(node))

    def _terminal(self, node: _Node) -> str:
        from pyllm.constraints.grammar import regex_literal, text_literal

        match node.kind:
            case "literal":
                return text_literal(node.text)
            case "class":
                return regex_literal(node.text)
            case "rule":
                return self._names[node.text]
            case "sequence":
                return " ".join(map(self._terminal, node.parts)) or '""'
            case "choice":
                return "(" + " | ".join(map(self._terminal, node.parts)) + ")"
            case _:
                return f"({self._terminal(node.parts[0])}){_count(node)}"

    def _rule(self, node: _Node) -> str:
        if self._is_regular(node):
            return self._own_terminal(node)
        match node.kind:
            case "token":
                return node.text
            case "rule":
                return self._names[node.text]
            case "sequence":
                return " ".join(map(self._rule, self._joined(node)))
            case "choice":
                return "(" + " | ".join(map(self._rule, self._joined(node))) + ")"
            case _:
                return f"({self._rule(node.parts[0])}){_count(node)}"

    def _joined(self, node: _Node) -> list[_Node]:
        """A node's parts, regular neighbours as one."""
        made: list[_Node] = []
        for regular, parts in itertools.groupby(node.parts, self._is_regular):
            group = tuple(parts)
            made += [_Node(node.kind, parts=group)] if regular else group
        return made

    def _own_terminal(self, node: _Node) -> str:
        if node.kind == "rule":
            return self._names[node.text]
        name = f"T{len(self._made)}"
        self._made.append(f"{name}: {self._terminal(node)}")
        return name


def _count(node: _Node) -> str:
    return {(0, None): "*", (1, None): "+", (0, 1): "?"}.get(
        (node.least, node.most), f"{{{node.least},{'' if node.most is None else node.most}}}"
    )


def _in_class(character: str) -> str:
    return f"\\x{{{ord(character):X}}}" if not character.isalnum() else character


def _inner(*nodes: _Node) -> list[_Node]:
    """Nodes and all nodes within them."""
    found = list(nodes)
    for node in found:
        found.extend(node.parts)
    return found
