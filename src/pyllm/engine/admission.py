"""Admission of requests: how many may wait, and when to try again."""

from __future__ import annotations

from collections import deque
from math import ceil
from time import perf_counter

from pyllm.errors import QueueFullError


class Admission:
    """Refuses requests where too many wait. `most`: requests that may wait for others to end; None: any number."""

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._ends: deque[float] = deque(maxlen=16)
        """When the last sequences ended."""

    def note_end(self) -> None:
        self._ends.append(perf_counter())

    def check(self, n: int, n_waiting: int, n_places: int) -> None:
        """Raise QueueFullError where `n` requests more, beside those that wait, would be too many for the places."""
        if self._most is None or n_waiting + n - n_places <= self._most:
            return
        ends = list(self._ends)
        seconds = (ends[-1] - ends[0]) / (len(ends) - 1) if len(ends) > 1 else 1.0
        seconds = float(max(1, ceil(seconds)))
        raise QueueFullError(
            f"the queue of {self._most} requests is full, {n_waiting} wait; try again in {seconds:.0f} s", seconds
        )
