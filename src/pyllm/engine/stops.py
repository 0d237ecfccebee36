"""Stop strings in a stream of text."""

from __future__ import annotations

from collections.abc import Sequence

from pyllm.errors import RequestError


class StopFilter:
    """Passes text through up to the first stop string, and holds back a possible prefix of one.

    The first stop string is the one that is complete first; of several that end together, the longest. So the result
    does not depend on how the text was cut into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if not all(stops):
            raise RequestError("a stop string must not be empty")
        self._stops = tuple(sorted(set(stops), key=len, reverse=True))
        self._held = ""
        self.stopped: str | None = None
        """The stop string found."""

    def push(self, text: str) -> str:
        """Add a piece; returns the text that can be shown now. After a stop, nothing is returned."""
        if not self._stops:
            return text
        if self.stopped is not None:
            return ""
        text = self._held + text
        found = [(text.find(stop) + len(stop), -len(stop), stop) for stop in self._stops if stop in text]
        if found:
            end, _, self.stopped = min(found)
            self._held = ""
            return text[: end - len(self.stopped)]
        held = self._possible_start(text)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def flush(self) -> str:
        """The text held back, at the end of the stream."""
        held, self._held = self._held, ""
        return held

    def _possible_start(self, text: str) -> int:
        """Length of the longest suffix of `text` that is a prefix of a stop string."""
        for n in range(min(len(text), len(self._stops[0]) - 1), 0, -1):
            if any(stop.startswith(text[-n:]) for stop in self._stops if len(stop) > n):
                return n
        return 0
