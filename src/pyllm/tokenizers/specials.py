"""Search for tokens written literally in a text: control tokens, user-defined tokens."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

_BLANKS = " \t\n\v\f\r"
_N_PREFIX = 3
_MAX_PATTERNS = 32
_DEEP = 80  # nesting of groups that `re` handles
_Claim = tuple[int, int, int]  # start, end, id


class Finder:
    """Splits texts at tokens: longer ones everywhere first, each from the left, as llama.cpp does.

    `ids` maps texts to ids; `swallowing` tokens include the blanks after them. Linear in the text, for any number of
    tokens and matches.
    """

    def __init__(self, ids: Mapping[str, int], swallowing: frozenset[int]) -> None:
        # Length in bytes, as in llama.cpp.
        self._tokens = sorted(filter(None, ids), key=lambda t: (-len(t.encode("utf-8", "surrogatepass")), ids[t]))
        self._ids = [ids[t] for t in self._tokens]
        self._ranks = {t: rank for rank, t in enumerate(self._tokens)}
        self._in_order = sorted(self._tokens)
        self._swallowing = swallowing
        self._by_prefix: dict[str, list[str]] = {}
        for token in self._tokens:
            self._by_prefix.setdefault(token[:_N_PREFIX], []).append(token)
        self._patterns: dict[frozenset[str], re.Pattern[str]] = {}
        self._rivals: dict[str, str] = {}

    def cut(self, text: str) -> list[str | int]:
        """Ids of the tokens, and the non-empty pieces of text between them."""
        if not text:
            return []
        pieces: list[str | int] = []
        at = 0
        for start, end, token_id in self._claims(text):
            if start > at:
                pieces.append(text[at:start])
            pieces.append(token_id)
            at = end
        if at < len(text):
            pieces.append(text[at:])
        return pieces

    def broken(self, text: str, mark: str) -> str:
        """The text with `mark` after the first character of every token in it, including overlapping ones."""
        pattern = self._longest_in(text)
        return text if pattern is None else re.sub(f"(?={pattern.pattern}).", rf"\g<0>{mark}", text, flags=re.DOTALL)

    def _longest_in(self, text: str) -> re.Pattern[str] | None:
        """A function that matches the longest token at a place of this text; None where there is none.

        Most of thousands of tokens are excluded by their beginnings, at no cost.
        """
        present = frozenset(prefix for prefix in self._by_prefix if prefix in text)
        if not present:
            return None
        pattern = self._patterns.get(present)
        if pattern is None:
            if len(self._patterns) >= _MAX_PATTERNS:
                self._patterns = {}
            tokens = sorted((t for prefix in present for t in self._by_prefix[prefix]), key=self._ranks.__getitem__)
            pattern = self._patterns[present] = re.compile(_expression(tokens))
        return pattern

    def _rivals_of(self, token: str) -> str:
        """The characters after a token with which an earlier, overlapping token may continue."""
        if token not in self._rivals:
            found = set()
            for i in range(1, len(token)):
                end = token[i:]
                at = bisect_left(self._in_order, end)
                while at < len(self._in_order) and self._in_order[at].startswith(end):
                    other = self._in_order[at]
                    if len(other) > len(end) and self._ranks[other] < self._ranks[token]:
                        found.add(other[len(end)])
                    at += 1
            self._rivals[token] = "".join(found)
        return self._rivals[token]

    def _claims(self, text: str) -> list[_Claim]:
        """The tokens found, in the order of the text."""
        pattern = self._longest_in(text)
        if pattern is None:
            return []
        if self._swallowing:
            return self._by_rank(text, pattern)
        claims: list[_Claim] = []
        for match in pattern.finditer(text):
            token, end = match[0], match.end()
            # Left to right equals longer ones first, unless a longer one begins within this one.
            rivals = self._rivals_of(token)
            if rivals and text[end : end + 1] in rivals and end < len(text):
                return self._by_rank(text, pattern)
            claims.append((match.start(), end, self._ids[self._ranks[token]]))
        return claims

    def _by_rank(self, text: str, pattern: re.Pattern[str]) -> list[_Claim]:
        """By the definition: one token after another, wherever it is still free."""
        longest = re.compile(f"(?=({pattern.pattern}))")
        waiting: dict[int, list[int]] = {}
        for match in longest.finditer(text):
            waiting.setdefault(self._ranks[match[1]], []).append(match.start())
        claims: list[_Claim] = []
        taken = bytearray(len(text))
        # Ranks ascend; a place whose token collides with an earlier one waits again, for a shorter token.
        todo = sorted(waiting, reverse=True)
        while todo:
            rank = todo.pop()
            token, token_id = self._tokens[rank], self._ids[rank]
            n = len(token)
            own = []
            for start in sorted(waiting.pop(rank)):
                if taken[start]:
                    continue
                if taken.find(1, start, start + n) < 0:
                    taken[start : start + n] = b"\1" * n
                    own.append(start)
                elif (shorter := self._shorter(token)) is not None:
                    if shorter not in waiting:
                        waiting[shorter] = []
                        todo.append(shorter)
                        todo.sort(reverse=True)
                    waiting[shorter].append(start)
            swallows = token_id in self._swallowing
            claims += [(s, _swallow(text, s + n, taken) if swallows else s + n, token_id) for s in own]
        return sorted(claims)

    def _shorter(self, token: str) -> int | None:
        """Rank of the longest token that this one begins with."""
        for n in range(len(token) - 1, 0, -1):
            if (rank := self._ranks.get(token[:n])) is not None:
                return rank
        return None


def _expression(tokens: Sequence[str]) -> str:
    """An expression that matches the longest of some texts, given longest first."""
    tree: dict[str, Any] = {}
    for token in tokens:
        node = tree
        for char in token:
            node = node.setdefault(char, {})
        node[""] = {}
    try:
        return _branches(tree, _DEEP)
    except RecursionError:
        return "|".join(map(re.escape, tokens))


def _branches(node: dict[str, Any], depth: int) -> str:
    """Factors out common prefixes of texts. Raises RecursionError where groups would nest too deeply."""
    if depth == 0:
        raise RecursionError
    texts = []
    for char, below in node.items():
        if char:
            text = re.escape(char)
            while len(below) == 1 and "" not in below:  # a stretch without a choice
                ((char, below),) = below.items()
                text += re.escape(char)
            texts.append(text if below.keys() == {""} else text + _branches(below, depth - 1))
    if "" in node:
        return f"(?:{'|'.join(texts)})?"
    return texts[0] if len(texts) == 1 else f"(?:{'|'.join(texts)})"


def _swallow(text: str, at: int, taken: bytearray) -> int:
    """End of the blanks from `at` on, which are swallowed."""
    while at < len(text) and not taken[at] and text[at] in _BLANKS:
        taken[at] = 1
        at += 1
    return at
