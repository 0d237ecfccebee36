"""The turn: one thread at a time changes the engine's state and runs its executable."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Turn:
    """A re-entrant lock with conditional waiting; a `with` block holds it.

    `owner` is the thread that holds it. After `claim` or `try_claim`, the holder releases it by setting `owner` to None
    at the right statement, then calling `wake`: an interrupt cannot come at an assignment, but could on the way into a
    method.
    """

    def __init__(self) -> None:
        self.owner: int | None = None
        # An RLock inside: a finalizer may run here, at any point, in a thread that holds it.
        self.changed = threading.Condition()
        self._in_line = 0
        self._depth = 0

    def claim(self, me: int, unless: Callable[[], bool]) -> bool:
        """Wait until this thread holds the turn (True), or until `unless()` (False)."""
        with self.changed:
            while not unless():
                # A `with` block goes first: threads that claim the turn step after step could keep it for ever.
                if self.owner is None and not self._in_line:
                    self.owner = me
                    self._depth = 1
                    return True
                self._wait()
        return False

    def try_claim(self, me: int) -> bool:
        """Take the turn if no thread, not even this one, holds it."""
        with self.changed:
            if self.owner is not None:
                return False
            self.owner = me
            self._depth = 1
            return True

    def wake(self) -> None:
        """Wake the waiting threads."""
        with self.changed:
            self.changed.notify_all()

    def __enter__(self) -> Turn:
        me = threading.get_ident()
        if self.owner == me:
            self._depth += 1
        else:
            with self.changed:
                self._in_line += 1
                try:
                    while self.owner is not None:
                        self._wait()
                    self.owner = me
                    self._depth = 1
                finally:
                    self._in_line -= 1
        return self

    def __exit__(self, *exception: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self.owner = None
            self.wake()

    def _wait(self) -> None:
        # The timeout is for an interrupt that kept a thread from waking the others.
        self.changed.wait(1.0)
