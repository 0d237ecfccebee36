"""Guesses by look-up: what followed the last tokens where they stood before, in the prompt or the answer."""

from __future__ import annotations

from collections.abc import Sequence as Many

import numpy as np
from numpy.typing import NDArray

from pyllm.engine.sequence import Sequence
from pyllm.engine.speculation.drafter import Drafter, Offer

MOST = 15
"""Tokens of a draft at most."""
_LENGTHS = (2, 3, 4, 6, 10, 20)
"""Tokens of a match at least, for each kind of offers."""
_PLACES = 12
"""Earlier places of the last two tokens that are compared, the latest first."""
_REACH = _LENGTHS[-1]
"""Tokens that are compared backwards."""
_BULK = 32
"""New tokens from which on they are indexed together."""
_BITS = 32
"""Of a token in a key."""


class Lookup(Drafter):
    """The longest match of the last tokens within the sequence itself; of equal ones the latest."""

    priors = (0.25, 0.35, 0.45, 0.6, 0.75, 0.85)
    is_free = True

    def offer(self, seq: Sequence) -> Offer:
        index = seq.drafting
        if index is None or len(index.tokens) > seq.n_tokens:  # the context was shifted
            index = seq.drafting = Index()
        length = index.follow(seq.tokens, seq.n_tokens)
        if length < _LENGTHS[0]:
            return Offer(0, 0)
        return Offer(sum(length >= least for least in _LENGTHS) - 1, MOST)

    def draft(self, wanted: Many[tuple[Sequence, int]]) -> list[list[int]]:
        return [seq.drafting.continuation(n) for seq, n in wanted]


class Index:
    """A sequence's tokens by pairs, and the place in it that its end repeats.

    Takes some microseconds a token, however long the sequence: a match that goes on is not looked for again.
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.at = 0
        """The token that followed where the last ones stood before; 0: there is no such place."""
        self.length = 0
        """Tokens before it that are the last ones, at most `_REACH`."""
        self._last: dict[int, int] = {}
        """By pair of tokens: the place after its last occurrence, where another token follows."""
        self._before: list[int] = []
        """For each place, the one before it after the same pair; 0: none."""

    def follow(self, tokens: NDArray[np.int32], n: int) -> int:
        """Find the place that `tokens[:n]` end like; returns how many tokens are alike. Those of the last call are the
        same."""
        known = len(self.tokens)
        new: list[int] = tokens[known:n].tolist()
        self.tokens += new
        self._index(tokens, known, n)
        at = self.at
        if at and self.tokens[at : at + len(new)] == new:
            self.at = at + len(new)
            self.length = min(_REACH, self.length + len(new))
        else:
            self._find(n)
        return self.length

    def continuation(self, n: int) -> list[int]:
        """The n tokens that would follow if the match went on: it may come up to the end, and repeats then."""
        found = self.tokens[self.at : self.at + n]
        period = len(found)
        while len(found) < n:
            found.append(found[len(found) - period])
        return found

    def _index(self, tokens: NDArray[np.int32], known: int, n: int) -> None:
        """Index the pairs that are followed by the tokens from `known` on."""
        first = max(known, 2)
        before, last = self._before, self._last
        before += [0] * (min(first, n) - len(before))
        if n - first < _BULK:
            own = self.tokens
            for place in range(first, n):
                key = own[place - 2] << _BITS | own[place - 1]
                before.append(last.get(key, 0))
                last[key] = place
            return
        wide = tokens[first - 2 : n - 1].astype(np.int64)
        keys = wide[:-1] << _BITS | wide[1:]
        order = np.argsort(keys, kind="stable")
        same = keys[order[1:]] == keys[order[:-1]]
        earlier = np.zeros(len(keys), np.int64)
        earlier[order[1:][same]] = order[:-1][same] + first
        listed: list[int] = keys.tolist()
        places: list[int] = earlier.tolist()
        if last:
            places = [place or last.get(key, 0) for place, key in zip(places, listed, strict=True)]
        before += places
        last.update(zip(listed, range(first, n), strict=True))

    def _find(self, n: int) -> None:
        self.at = self.length = 0
        own = self.tokens
        if n < 2:
            return
        place = self._last.get(own[n - 2] << _BITS | own[n - 1], 0)
        for _ in range(_PLACES):
            if not place:
                return
            length, most = 2, min(_REACH, place)
            while length < most and own[place - 1 - length] == own[n - 1 - length]:
                length += 1
            if length > self.length:
                self.at, self.length = place, length
                if length == _REACH:
                    return
            place = self._before[place]
