"""Whose turn it is: one thread at a time changes the engine's state and runs its executable."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Turn:
    """A re-entrant lock that can also be waited for "unless"; a `with` block holds it.

    `owner` is the thread that has it. Who gets it by `claim` or `try_claim` gives it back by setting `owner` to None
    and calling `wake`, the former in the very place where it is due: an interrupt cannot come between then, as it
    could on the way into a method.
    """

    def __init__(self) -> None:
        self.owner: int | None = None
        # An RLock inside: a finalizer may come by here, at any point, in a thread that holds it.
        self.changed = threading.Condition()
        self._in_line = 0
        self._depth = 0

    def claim(self, me: int, unless: Callable[[], bool]) -> bool:
        """Wait until it is this thread's turn (True), or until `unless()` (False)."""
        with self.changed:
            while not unless():
                # Who takes it by `with` goes first: those who claim it for step after step could keep it for ever.
                if self.owner is None and not self._in_line:
                    self.owner = me
                    self._depth = 1
                    return True
                self._wait()
        return False

    def try_claim(self, me: int) -> bool:
        """Take the turn if nobody, not even this thread, has it."""
        with self.changed:
            if self.owner is not None:
                return False
            self.owner = me
            self._depth = 1
            return True

    def wake(self) -> None:
        """Let those who wait look again."""
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
