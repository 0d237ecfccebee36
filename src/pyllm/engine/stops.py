"""Stop strings in a stream of text."""

from __future__ import annotations

from collections.abc import Sequence

from pyllm.errors import RequestError


class StopFilter:
    """Passes text on up to the first stop string, and holds back what may yet become one.

    The first is the one that is complete first, and of several that end together the longest; so the result does not
    depend on how the text was cut into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if not all(stops):
            raise RequestError("a stop string must not be empty")
        self._stops = tuple(sorted(set(stops), key=len, reverse=True))
        self._held = ""
        self.stopped: str | None = None
        """The stop string that was found."""

    def push(self, text: str) -> str:
        """Take the next piece; returns what can be shown now. After a stop everything is swallowed."""
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
        """The text that was held back, once no more comes."""
        held, self._held = self._held, ""
        return held

    def _possible_start(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        for n in range(min(len(text), len(self._stops[0]) - 1), 0, -1):
            if any(stop.startswith(text[-n:]) for stop in self._stops if len(stop) > n):
                return n
        return 0
