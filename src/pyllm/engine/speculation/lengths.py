"""How long drafts should be: what further tokens cost in a step, and how likely guesses are right, both measured."""

from __future__ import annotations

from collections.abc import Sequence as Many
from math import exp, log

from pyllm.records import dataclass

_SLOPE = 0.1
"""What another token of a step is taken to add, as a part of a step of one, before it is measured."""
_BASE_GAIN, _RATIO_GAIN = 0.3, 0.1
"""How much of a step's deviation goes into the time of steps in general, and of its size."""
_RELAXED = 0.002
"""The part by which what is known of other sizes goes back to what is taken at first, a step."""
_WORTH = 1.03
"""Gain in speed from which on drafts are worth it."""
_SPREAD = 4
"""Observations that what is known of all sequences counts as, for one."""
_SURE = 10
"""Observations that what was taken at first counts as."""
_FADE, _FADE_OF_ALL = 0.95, 0.99
"""What remains of an observation's weight after another one, of the same sequence or of any."""


class StepTimes:
    """Seconds of steps by their tokens: those of one token, times a factor for the number of tokens.

    Steps in general become slower and faster, with longer contexts and a busy machine; so each measurement says
    something of steps in general, and less of its number of tokens.
    """

    def __init__(self, most: int) -> None:
        self._first = [log(1 + _SLOPE * max(0, n - 1)) for n in range(most + 1)]
        self._factors = self._first.copy()
        """Logarithms; they never become less for more tokens."""
        self._one = 0.0
        """Logarithm of the seconds of a step of one token."""
        self.known = False

    def note(self, n: int, seconds: float) -> None:
        """A step of n tokens took so long."""
        factors, n, found = self._factors, min(n, len(self._factors) - 1), log(max(seconds, 1e-9))
        if not self.known:
            self._one, self.known = found - factors[n], True
        over = found - self._one - factors[n]
        self._one += _BASE_GAIN * over
        for i, first in enumerate(self._first):
            factors[i] += _RELAXED * (first - factors[i])
        if n > 1:
            factors[n] = max(0.0, factors[n] + _RATIO_GAIN * max(-1.0, min(1.0, over)))
            for i in range(2, n):
                factors[i] = min(factors[i], factors[n])
            for i in range(n + 1, len(factors)):
                factors[i] = max(factors[i], factors[n])

    def seconds(self, n: int) -> float:
        """What a step of n tokens takes; 0 before any was measured."""
        return exp(self._one + self._factors[min(n, len(self._factors) - 1)]) if self.known else 0.0


class Acceptance:
    """How likely a guess is right whose predecessors are, by the kind of the offer."""

    def __init__(self, priors: Many[float], weight: float = _SURE, fade: float = _FADE_OF_ALL) -> None:
        self._right = [weight * p for p in priors]
        self._all = [weight] * len(priors)
        self._fade = fade

    def of_one(self) -> Acceptance:
        """That of a sequence, which begins with what is known of all."""
        return Acceptance([self.likelihood(kind) for kind in range(len(self._all))], _SPREAD, _FADE)

    def note(self, kind: int, n_right: int, n_wrong: int) -> None:
        self._right[kind] = self._right[kind] * self._fade + n_right
        self._all[kind] = self._all[kind] * self._fade + n_right + n_wrong

    def likelihood(self, kind: int) -> float:
        return self._right[kind] / self._all[kind]


@dataclass(frozen=True, slots=True)
class Prospect:
    """A sequence's offer: how likely each guess is right, and how many there are."""

    likelihood: float
    n: int
    drafting: float = 0.0
    """Seconds that one more token of it takes to guess."""


def best_rate(prospect: Prospect, n_seqs: int, most: int, times: StepTimes) -> float:
    """Tokens a second to expect of a step of so many sequences, one of which gets the best number of guesses."""
    if not times.known:
        return 0.0
    expected, best = float(n_seqs), 0.0
    for i in range(min(prospect.n, most) + 1):
        expected += prospect.likelihood**i if i else 0
        best = max(best, expected / (times.seconds(n_seqs + i) + i * prospect.drafting))
    return best


def lengths(prospects: Many[Prospect], most: int, times: StepTimes) -> list[int]:
    """How many tokens to draft of each sequence, `most` of all, so that most tokens a second are expected. Before any
    step was measured, there are none."""
    if not times.known:
        return [0] * len(prospects)
    gains = sorted(
        ((p.likelihood**i, i, s) for s, p in enumerate(prospects) for i in range(1, min(p.n, most) + 1)),
        key=lambda gain: (-gain[0], gain[1]),
    )
    n_seqs = len(prospects)
    best, highest = 0, _WORTH * n_seqs / times.seconds(n_seqs)
    expected, longest = float(n_seqs), 0.0
    for m, (gain, i, s) in enumerate(gains[:most], 1):
        expected += gain
        longest = max(longest, i * prospects[s].drafting)
        rate = expected / (times.seconds(n_seqs + m) + longest)
        if rate > highest:
            best, highest = m, rate
    found = [0] * n_seqs
    for _, _, s in gains[:best]:
        found[s] += 1
    return found
