"""Slices of prompts' steps between the steps of answers that are followed, where a step can be paused."""

from __future__ import annotations

from collections import deque

from pyllm.engine.pace import MARGIN, RATIO, median

_LEAST = 0.2
"""The part of its time that is asked for at least, however long slices last beyond it."""
_SMALLEST, _FIRST, _LARGEST = 16, 32, 128
"""Prompt tokens of a step: an op takes longer with more of them, and each token longer with fewer."""
_TOO_LATE, _EARLY = 0.5, 0.2
"""Parts of a slice's time: where slices end so much too late, steps become smaller, or larger."""
_NOTES = 12
"""Slices after which the size of steps may change."""


class Slices:
    """Sizes slices, and the steps that they are cut from, by measured time.

    A slice ends with an op, so it ends late, by a part of what the longest ops take: that is asked for less.
    """

    def __init__(self) -> None:
        self.chunk = _FIRST
        """Most prompt tokens of a step."""
        self._late: deque[float] = deque(maxlen=2 * _NOTES)
        """Seconds by which the last slices ended too late."""
        self._n = 0
        """Slices noted since the size of steps changed."""
        self._share = self._asked = 0.0

    def seconds(self, usual: float) -> float:
        """How long to compute for a slice beside a step that usually takes so long."""
        self._share = (RATIO - 1) * MARGIN * usual
        late = median(self._late) if self._late else 0.0
        self._asked = max(_LEAST * self._share, self._share - late)
        return self._asked

    def note(self, seconds: float) -> None:
        """The last slice took so long, and its step was paused."""
        self._late.append(max(0.0, seconds - self._asked))
        self._n += 1
        if self._n < _NOTES:
            return
        most = sorted(self._late)[int(0.9 * len(self._late))]
        if most > _TOO_LATE * self._share:
            self._resize(max(_SMALLEST, self.chunk // 2))
        elif most < _EARLY * self._share:
            self._resize(min(_LARGEST, self.chunk * 2))

    def _resize(self, chunk: int) -> None:
        if chunk != self.chunk:
            self._late = deque((late * chunk / self.chunk for late in self._late), self._late.maxlen)
            self.chunk, self._n = chunk, 0
