"""Prompt tokens for a step while answers are read as they come, so that no gap between their tokens is long."""

from __future__ import annotations

from collections import deque
from statistics import median

RATIO = 2.0
"""A step with a prompt takes at most so many times what the answers' step takes without one."""
_MARGIN = 0.85
"""The part of the allowed time that is planned with: times vary."""
_FRESH = 24
"""Steps with prompts after which one without is measured again."""
_LEAST = 4
"""Prompt tokens of a step at least, so that a prompt gets through."""
_LAST = 5


class Pace:
    """Sizes chunks of prompts by measured time.

    The time of a step of n answers alone is the median of the last ones measured; so is the additional time of a prompt
    token. Chunks grow to twice the last one at most, because a token's time depends on the size of its chunk.
    """

    def __init__(self) -> None:
        self._alone: dict[int, deque[float]] = {}
        """Seconds of the last steps of n answers without a prompt."""
        self._per_token: deque[float] = deque(maxlen=_LAST)
        """Seconds that a prompt token added to the last steps."""
        self._chunk = 0
        """Prompt tokens of the last step that was full of them."""
        self._allowed = 0
        """The last limit."""
        self._since = 0
        """Steps with prompts since the last one without."""

    def limit(self, n_answers: int) -> int:
        """Most prompt tokens beside so many answers; 0: their step is to be measured alone."""
        alone = self._alone.get(n_answers)
        if not alone or self._since >= _FRESH:
            return 0
        chunk = n_answers
        if self._per_token:
            seconds = (RATIO - 1) * _MARGIN * median(alone)
            chunk = min(int(seconds / max(median(self._per_token), 1e-9)), 2 * self._chunk)
        self._allowed = max(_LEAST, chunk)
        return self._allowed

    def note(self, n_answers: int, n_prompt: int, seconds: float) -> None:
        """A step of so many answers and prompt tokens took so long."""
        if not n_prompt:
            self._alone.setdefault(n_answers, deque(maxlen=_LAST)).append(seconds)
            self._since = 0
        elif (alone := self._alone.get(n_answers)) is not None:
            self._since += 1
            if n_prompt >= self._allowed:  # less was left of a prompt: a token's time is another one then
                self._per_token.append(max(0.0, seconds - median(alone)) / n_prompt)
                self._chunk = n_prompt
