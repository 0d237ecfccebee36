"""Two spellings of one regular expression: `canonical` gives both the same form.

Tokenizers are trained with a handful of expressions, but files spell them in many ways: `(?i:'s|'t)` or `'[sS]|'[tT]`,
characters or their escapes, possessive quantifiers where nothing could be given back. What `canonical` changes never
changes how a text is cut where each match and each gap between matches is a piece; what it does not understand makes
two expressions different, never equal.
"""

from __future__ import annotations

from typing import Any

Form = tuple[Any, ...]
"""A canonical form; forms are only ever compared."""

_ONCE = (1, 1, "")
_ENDLESS = -1
_SEVERAL = (1, _ENDLESS, "")
_MAX_LANGUAGE = 64
_MAX_DEPTH = 50
_CONTROLS = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "a": "\a", "e": "\x1b", "0": "\0"}
_BLANKS = "\t\n\v\f\r "


def canonical(pattern: str) -> Form:
    """The form that all spellings of an expression share. Raises ValueError for syntax that is not understood."""
    parser = _Parser(pattern)
    alternatives = parser.alternatives(ignore_case=False, depth=0)
    if parser.rest():
        raise ValueError(f"{pattern!r} has a bracket too many")
    # What `\s+(?!\S)` leaves of a run of blanks is one blank: a match of `\s+`, or a gap of the same extent, as all
    # signs match and so no gap can join it.
    ends_in_blanks = alternatives[-1] in (_BLANK_RUN, _BLANK) and alternatives[-2:-1] == (_BLANKS_BUT_ONE,)
    if ends_in_blanks and any((_SIGNS, _SEVERAL) in sequence for sequence in alternatives):
        return alternatives[:-1]
    return alternatives


class _Parser:
    """Reads an expression by descent; every method leaves `at` after what it read."""

    def __init__(self, pattern: str) -> None:
        self.pattern, self.at = pattern, 0

    def rest(self) -> str:
        return self.pattern[self.at :]

    def take(self, text: str) -> bool:
        found = self.pattern.startswith(text, self.at)
        self.at += len(text) if found else 0
        return found

    def next(self) -> str:
        if self.at >= len(self.pattern):
            raise ValueError(f"{self.pattern!r} ends too early")
        self.at += 1
        return self.pattern[self.at - 1]

    def alternatives(self, *, ignore_case: bool, depth: int) -> Form:
        """All up to a closing bracket or the end: a tuple of sequences, or of sets of plain strings."""
        if depth > _MAX_DEPTH:
            raise ValueError("brackets are nested too deeply")
        found: list[Form] = []
        while True:
            sequence = self.sequence(ignore_case, depth)
            lone = sequence[0] if len(sequence) == 1 else None
            if lone and lone[0][0] == "group" and lone[1] == _ONCE:
                found.extend(lone[0][1])  # a bracket around a whole alternative changes nothing
            else:
                found.append(sequence)
            if not self.take("|"):
                return _joined(found)

    def sequence(self, ignore_case: bool, depth: int) -> Form:
        elements: list[tuple[Form, Form]] = []
        while self.rest() and self.rest()[0] not in "|)":
            atom = self.atom(ignore_case, depth)
            elements.append((atom, self.quantifier()))
        return _simplified(elements)

    def atom(self, ignore_case: bool, depth: int) -> Form:
        c = self.next()
        if c == "(":
            return self.group(ignore_case, depth)
        if c == "[":
            return self.char_class(ignore_case, depth)
        if c in "^$.":
            return ("sign", c)
        if c in "*+?{":
            raise ValueError(f"{self.pattern!r} repeats nothing")
        member = self.escape() if c == "\\" else c
        if member in ("\\b", "\\B", "\\A", "\\z", "\\Z", "\\G"):
            return ("sign", member)
        return _class({member}, ignore_case)

    def group(self, ignore_case: bool, depth: int) -> Form:
        kind, name = "group", ""
        if self.take("?"):
            for mark in ("<=", "<!", "=", "!", ">"):
                if self.take(mark):
                    kind, name = "look", mark
                    break
            else:
                flags = self.pattern[self.at :].split(":", 1)[0]
                if flags not in ("", "i", "-i"):
                    raise ValueError(f"(?{flags} is not understood")
                ignore_case = flags == "i" or (ignore_case and flags == "")
                self.at += len(flags) + 1
        inner = self.alternatives(ignore_case=ignore_case, depth=depth + 1)
        if not self.take(")"):
            raise ValueError(f"{self.pattern!r} lacks a closing bracket")
        return (kind, inner, name) if kind == "look" else (kind, inner)

    def char_class(self, ignore_case: bool, depth: int) -> Form:
        """After "[": members up to "]"; a class within is part of it (Oniguruma's union)."""
        negated, members = self.take("^"), set[Any]()
        first = True
        while first or not self.take("]"):
            first = False
            c = self.next()
            if c == "[":
                if depth > _MAX_DEPTH or self.rest()[:1] in ("^", ":"):
                    raise ValueError("this class within a class is not understood")
                inner = self.char_class(ignore_case, depth + 1)
                members.update(inner[2])
                members.update(inner[3])
                continue
            if c == "&" and self.rest()[:1] == "&":
                raise ValueError("intersections of classes are not understood")
            low = self.escape() if c == "\\" else c
            if len(low) == 1 and self.rest()[:1] == "-" and self.rest()[1:2] not in ("]", ""):
                self.at += 1
                c = self.next()
                high = self.escape() if c == "\\" else c
                if len(high) != 1 or high < low:
                    raise ValueError(f"{self.pattern!r} has a range that is none")
                members.add((ord(low), ord(high)))
            else:
                members.add(low)
        return _class(members, ignore_case, negated)

    def escape(self) -> str:
        """After a backslash: the character that is meant, or the escape itself where it means several."""
        c = self.next()
        if c in "pP":
            end = self.pattern.find("}", self.at)
            if not self.take("{") or end < 0:
                raise ValueError(f"\\{c} names no property")
            name, self.at = self.pattern[self.at : end], end + 1
            return f"\\{c}{{{name}}}"
        if c in _CONTROLS:
            return _CONTROLS[c]
        if c in "uUx":
            return self.code_point(c)
        if c.isalnum():
            if c not in "sSdDwWbBAzZGhHR":
                raise ValueError(f"\\{c} is not understood")
            return f"\\{c}"
        return c

    def code_point(self, kind: str) -> str:
        if self.take("{"):
            digits = self.pattern[self.at :].split("}", 1)[0]
            self.at += len(digits) + 1
        else:
            n = {"u": 4, "U": 8, "x": 2}[kind]
            digits = self.pattern[self.at : self.at + n]
            self.at += n
        code = int(digits, 16)
        if code > 0x10FFFF:
            raise ValueError(f"\\{kind}{digits} is no character")
        return chr(code)

    def quantifier(self) -> Form:
        rest = self.rest()
        if rest[:1] in ("*", "+", "?") and rest:
            self.at += 1
            low, high = {"*": (0, _ENDLESS), "+": (1, _ENDLESS), "?": (0, 1)}[rest[0]]
            mode = self.rest()[:1] if self.rest()[:1] in ("?", "+") else ""
        elif rest.startswith("{"):
            bounds = rest[1:].split("}", 1)[0]
            self.at += len(bounds) + 2
            first, comma, last = bounds.partition(",")
            low = int(first or 0)
            high = int(last) if last else _ENDLESS if comma else low
            mode = "?" if self.rest()[:1] == "?" else ""
        else:
            return _ONCE
        self.at += len(mode)
        return (low, high, mode)


def _class(members: set[Any], ignore_case: bool, negated: bool = False) -> Form:
    """("class", negated, escapes, ranges): characters as sorted, joined ranges of code points."""
    escapes = frozenset(m for m in members if isinstance(m, str) and len(m) > 1)
    ranges = [m for m in members if not isinstance(m, str)]
    for c in (m for m in members if isinstance(m, str) and len(m) == 1):
        ranges.append((ord(c), ord(c)))
        if ignore_case and c.isascii():
            ranges += [(ord(v), ord(v)) for v in (c.lower(), c.upper())]
    joined: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(high, joined[-1][1]))
        else:
            joined.append((low, high))
    return ("class", negated, escapes, tuple(joined))


_S = _class({"\\s"}, False)
_LINE = _class({"\r", "\n"}, False)
_SIGNS = _class({"\\s", "\\p{L}", "\\p{N}"}, False, negated=True)
_BLANK_RUN: Form = ((_S, _SEVERAL),)
_BLANK: Form = ((_S, _ONCE),)
_BLANKS_BUT_ONE: Form = (*_BLANK_RUN, (("look", (((_class({"\\S"}, False), _ONCE),),), "!"), _ONCE))


def _simplified(elements: list[tuple[Form, Form]]) -> Form:
    """A sequence without what has no effect."""
    out = []
    for i, (atom, (low, high, mode)) in enumerate(elements):
        following = elements[i + 1] if i + 1 < len(elements) else None
        if mode == "+" and (following is None or _disjoint(atom, following[0])):
            mode = ""
        out.append((atom, (low, high, mode)))
    if len(out) == 2 and out[0] == (_S, (0, _ENDLESS, "")) and out[1][0] == _LINE and out[1][1] == _SEVERAL:
        out[1] = (_LINE, _ONCE)  # `\s*` has taken all line ends but the last
    if len(out) > 1 and out[0][0] == ("look", (((out[1][0], _ONCE),),), "<!") and out[1][1] == _SEVERAL:
        del out[0]  # a search from the left never begins within a run
    return tuple(out)


def _disjoint(a: Form, b: Form) -> bool:
    """Whether it is plain that no character is in both: `a` excludes all that `b` lists."""
    if a[0] != "class" or b[0] != "class" or not a[1] or b[1]:
        return False
    excluded = [*a[3], *((ord(c), ord(c)) for c in _BLANKS if "\\s" in a[2])]
    codes = [code for low, high in b[3] for code in range(low, min(high, low + _MAX_LANGUAGE) + 1)]
    return b[2] <= a[2] and all(any(low <= code <= high for low, high in excluded) for code in codes)


def _joined(alternatives: list[Form]) -> Form:
    """Alternatives with neighbours that are plain strings as one set: where none begins another, order is nothing."""
    out: list[Form] = []
    for alternative in alternatives:
        words = alternative[1] if alternative[:1] == ("words",) else _language(alternative)
        if words is None:
            out.append(alternative)
            continue
        before = out[-1][1] if out and out[-1][:1] == ("words",) else frozenset()
        both = before | words
        free = not any(a != b and b.startswith(a) for a in both for b in both)
        if before and free and len(both) <= _MAX_LANGUAGE:
            out[-1] = ("words", both)
        elif all(not (a != b and b.startswith(a)) for a in words for b in words):
            out.append(("words", words))
        else:
            out.append(alternative)
    return tuple(out)


def _language(sequence: Form) -> frozenset[str] | None:
    """All strings that a sequence matches, where they are few; None else."""
    words = {""}
    for atom, quantifier in sequence:
        if quantifier != _ONCE:
            return None
        if atom[0] == "class" and not atom[1] and not atom[2]:
            parts = [chr(code) for low, high in atom[3] for code in range(low, min(high, low + 4) + 1)]
        elif atom[0] == "group" and all(inner[:1] == ("words",) for inner in atom[1]):
            parts = [word for inner in atom[1] for word in inner[1]]
        else:
            return None
        if len(parts) * len(words) > _MAX_LANGUAGE or (atom[0] == "class" and any(h - l > 3 for l, h in atom[3])):
            return None
        words = {word + part for word in words for part in parts}
    return frozenset(words) if words != {""} else None
