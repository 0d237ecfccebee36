"""Finding the tokens that are written in a text as they are: control tokens, user-defined tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_N_PREFIX = 3  # characters by which most tokens are ruled out together
_BLANKS = " \t\n\v\f\r"


class Finder:
    """Cuts texts at tokens: longer ones everywhere first, each from the left, as llama.cpp does.

    `ids` maps texts to ids; `swallowing` tokens take the blanks after them along. The time is linear in the text,
    however many tokens there are and occur.
    """

    def __init__(self, ids: Mapping[str, int], swallowing: frozenset[int]) -> None:
        # Bytes count, not characters, because they do in llama.cpp.
        self._tokens = sorted(filter(None, ids), key=lambda t: (-len(t.encode("utf-8", "surrogatepass")), ids[t]))
        self._ids = [ids[t] for t in self._tokens]
        self._ranks = {t: rank for rank, t in enumerate(self._tokens)}
        self._swallowing = swallowing
        lengths: dict[str, set[int]] = {}
        for token in self._tokens:
            lengths.setdefault(token[:_N_PREFIX], set()).add(len(token))
        self._lengths = {prefix: sorted(found, reverse=True) for prefix, found in lengths.items()}
        self._starts = _starts(self._tokens) if self._tokens else None

    def cut(self, text: str) -> list[str | int]:
        """The tokens' ids, and the pieces of text between them; no piece is empty."""
        if not text:
            return []
        claims = self._claims(text)
        if not claims:
            return [text]
        pieces: list[str | int] = []
        at = 0
        for start, end, token_id in claims:
            if start > at:
                pieces.append(text[at:start])
            pieces.append(token_id)
            at = end
        if at < len(text):
            pieces.append(text[at:])
        return pieces

    def _claims(self, text: str) -> list[tuple[int, int, int]]:
        """(start, end, id) of the tokens found, in the order of the text."""
        waiting = self._longest_at_each_place(text)
        if not waiting:
            return []
        claims: list[tuple[int, int, int]] = []
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
                elif (shorter := self._rank_at(text, start, n)) is not None:
                    if shorter not in waiting:
                        waiting[shorter] = []
                        todo.append(shorter)
                        todo.sort(reverse=True)
                    waiting[shorter].append(start)
            swallows = token_id in self._swallowing
            claims += [(s, _swallow(text, s + n, taken) if swallows else s + n, token_id) for s in own]
        return sorted(claims)

    def _longest_at_each_place(self, text: str) -> dict[int, list[int]]:
        """Of each place where a token begins the longest one: places by rank."""
        found: dict[int, list[int]] = {}
        if self._starts is not None:
            for match in self._starts.finditer(text):
                rank = self._rank_at(text, match.start())
                if rank is not None:
                    found.setdefault(rank, []).append(match.start())
        return found

    def _rank_at(self, text: str, start: int, below: int | None = None) -> int | None:
        """Rank of the longest token at a place, shorter than `below` characters."""
        for size in range(_N_PREFIX, 0, -1):  # a token that is shorter than a prefix is one itself
            for length in self._lengths.get(text[start : start + size], ()):
                if below is None or length < below:
                    rank = self._ranks.get(text[start : start + length])
                    if rank is not None:
                        return rank
        return None


def _starts(tokens: Iterable[str]) -> re.Pattern[str]:
    """An expression for places where a token may begin, by its first two characters."""
    seconds: dict[str, set[str]] = {}
    for token in tokens:
        seconds.setdefault(token[0], set()).add(token[1:2])
    alone = "".join(re.escape(a) for a, follow in seconds.items() if "" in follow)
    first = "".join(re.escape(a) for a, follow in seconds.items() if "" not in follow)
    second = "".join(map(re.escape, set().union(*seconds.values())))
    return re.compile("|".join([f"[{alone}]"] * bool(alone) + [f"[{first}](?=[{second}])"] * bool(first)))


def _swallow(text: str, at: int, taken: bytearray) -> int:
    """Where the blanks from `at` on end; they are taken."""
    while at < len(text) and not taken[at] and text[at] in _BLANKS:
        taken[at] = 1
        at += 1
    return at
