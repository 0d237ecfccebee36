"""Slices of prompts' steps between the steps of answers that are followed, where a step can be paused."""

from __future__ import annotations

from collections import deque

from pyllm.engine.pace import RATIO, median

_MARGIN = 0.9
"""The part of the allowed time that is planned with: times vary."""
_FRESH = 24
"""Slices after which a step is measured without one before it."""
_LAST = 5
_LEAST = 0.2
"""The part of a step's usual time that a slice gets at least, and of a slice's that is asked for at least."""
_SMALLEST, _FIRST, _LARGEST = 16, 32, 128
"""Prompt tokens of a step: an op takes longer with more of them, and each token longer with fewer."""
_LATE, _EARLY = 0.4, 0.15
"""Parts of a slice's time: where a quarter of slices end later than that, or no quarter later than this, steps become
smaller, or larger."""
_NOTES = 12
"""Slices after which the size of steps may change."""


class Slices:
    """Sizes slices, and the steps that they are cut from, by measured time.

    A slice ends with an op, so it ends late, by a part of what the longest ops take: that is asked for less. The step
    after a slice takes longer than usual, because it finds its data out of caches: the slice gets what is left.
    """

    def __init__(self) -> None:
        self.chunk = _FIRST
        """Most prompt tokens of a step."""
        self.before = False
        """Whether a slice came just before the answers' next step."""
        self._after: deque[float] = deque(maxlen=_LAST)
        """Seconds of the last steps of answers after a slice."""
        self._late: deque[float] = deque(maxlen=2 * _NOTES)
        """Seconds by which the last slices ended too late."""
        self._n = self._n_fresh = 0
        """Slices noted since the size of steps changed, and since a step was measured without one."""
        self._share = self._asked = 0.0

    def seconds(self, usual: float) -> float | None:
        """How long to compute for a slice beside a step that usually takes so long; None: there is to be none, so that
        the next step is a usual one."""
        if self.before and self._n_fresh >= _FRESH:
            self.before, self._n_fresh = False, 0
            return None
        self.before = True
        self._n_fresh += 1
        step = median(self._after) if self._after else usual
        self._share = max(_LEAST * usual, RATIO * _MARGIN * usual - step)
        late = median(self._late) if self._late else 0.0
        self._asked = max(_LEAST * self._share, self._share - late)
        return self._asked

    def note_step(self, seconds: float) -> None:
        """The step after a slice took so long."""
        self._after.append(seconds)

    def note(self, seconds: float) -> None:
        """The last slice took so long, and its step was paused."""
        self._late.append(max(0.0, seconds - self._asked))
        self._n += 1
        if self._n < _NOTES:
            return
        late = sorted(self._late)[3 * len(self._late) // 4]  # the latest are a busy machine's
        if late > _LATE * self._share:
            self._resize(max(_SMALLEST, self.chunk // 2))
        elif late < _EARLY * self._share:
            self._resize(min(_LARGEST, self.chunk * 2))

    def _resize(self, chunk: int) -> None:
        if chunk != self.chunk:
            self._late = deque((late * chunk / self.chunk for late in self._late), self._late.maxlen)
            self.chunk, self._n = chunk, 0
