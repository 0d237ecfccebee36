"""Prompt tokens for a step while answers are read as they come, so that no gap between their tokens is long."""

from __future__ import annotations

from collections import deque

RATIO = 2.0
"""A step with a prompt takes at most so many times what the answers' step takes without one."""
_MARGIN = 0.8
"""The part of the allowed time that is planned with: times vary."""
_FRESH = 24
"""Steps with prompts after which one without is measured again."""
_STALE = 100
"""Steps without a prompt after which the next prompt begins with a small chunk again."""
_LEAST = 3
"""Prompt tokens of a step at least, so that a prompt gets through: it is never cut into single ones."""
_BULK = 64
"""Tokens of a step of prompts alone whose time tells what a prompt token takes at best."""
_DOMINATED = 4.0
"""Times of that at which most of a chunk's time depends on there being one, not on its size."""
_LAST = 5


def median(values: deque[float]) -> float:
    """Their (upper) median; `statistics` takes milliseconds to import."""
    return sorted(values)[len(values) // 2]


class Pace:
    """Sizes chunks of prompts by measured time.

    The time of a step of n answers alone is the median of the last ones measured; so is the additional time of a prompt
    token, unless the last one took longer. Chunks grow to twice the last one at most, because a token's time depends on
    the size of its chunk. Where a chunk costs much whatever its size, small ones would only multiply that: chunks then
    grow until their tokens cost as much again.
    """

    def __init__(self) -> None:
        self._alone: dict[int, deque[float]] = {}
        """Seconds of the last steps of n answers without a prompt."""
        self._per_token: deque[float] = deque(maxlen=_LAST)
        """Seconds that a prompt token added to the last steps."""
        self._bulk: deque[float] = deque(maxlen=_LAST)
        """Seconds of a token in the last large steps of prompts alone."""
        self._chunk = 0
        """Prompt tokens of the last step that was full of them."""
        self._allowed = 0
        """The last limit."""
        self._last = 0.0
        """Seconds of the last step with answers."""
        self._with = self._without = 0
        """Steps with prompts since the last one without, and steps without since the last one with."""

    def usual(self, n_answers: int) -> float:
        """Seconds of a step of so many answers without a prompt; else of the last one with any number."""
        alone = self._alone.get(n_answers)
        return median(alone) if alone else self._last

    def limit(self, n_answers: int) -> int:
        """Most prompt tokens beside so many answers; 0: their step is to be measured alone."""
        alone = self._alone.get(n_answers)
        if not alone or self._with >= _FRESH:
            return 0
        chunk = n_answers
        if self._per_token:
            cost = max(median(self._per_token), self._per_token[-1], 1e-9)
            chunk = int((RATIO - 1) * _MARGIN * median(alone) / cost)
            if self._bulk and cost > _DOMINATED * median(self._bulk):
                chunk = max(chunk, int(cost * self._chunk / median(self._bulk)))
            chunk = min(chunk, 2 * self._chunk)
        self._allowed = max(_LEAST, chunk)
        return self._allowed

    def note(self, n_answers: int, n_prompt: int, seconds: float) -> None:
        """A step of so many answers and prompt tokens took so long."""
        if n_answers:
            self._last = seconds
        if not n_answers:
            if n_prompt >= _BULK:
                self._bulk.append(seconds / n_prompt)
        elif not n_prompt:
            self._alone.setdefault(n_answers, deque(maxlen=_LAST)).append(seconds)
            self._with = 0
            self._without += 1
            if self._without == _STALE:
                self._per_token.clear()
        elif (alone := self._alone.get(n_answers)) is not None:
            self._with += 1
            self._without = 0
            if n_prompt >= self._allowed:  # less was left of a prompt: a token's time is another one then
                self._per_token.append(max(0.0, seconds - median(alone)) / n_prompt)
                self._chunk = n_prompt
