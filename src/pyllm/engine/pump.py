"""The thread that computes: it steps while there is work, and ends when there has been none for a moment.

Ctrl-C in the main thread leaves no lock taken: locks are CPython's own, in `with` blocks, and each wait has its own
lock.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Protocol

from pyllm.engine.wakes import waiter

LINGER = 1.0
"""Seconds that the thread waits for more work before it ends."""


class Driven(Protocol):
    """What a pump drives."""

    def step(self) -> bool:
        """Do a piece of work; False where there was none. Raises nothing."""

    def stop(self) -> None:
        """Interrupt the step that is running. Any thread may call."""


class Pump:
    """Calls `step` of what it drives, in a thread of its own, which it starts when it is woken.

    While it waits for work it keeps nothing alive.
    """

    def __init__(self, driven: Driven) -> None:
        self._driven = weakref.ref(driven, lambda _: self.nudge())
        self._gate = threading.RLock()  # re-entrant: a finalizer may come by here in the thread that holds it
        self._thread: int | None = None
        """The thread's number, while it lives."""
        self._woken = False
        self.ended = False
        """Whether it has ended for good."""
        self._sleeping: list[Callable[[], None]] = []
        self._waiting_for_end: list[Callable[[], None]] = []
        self._calls: deque[Callable[[], None]] = deque()

    def wake(self) -> None:
        """There is work: let the thread look, and start it where there is none."""
        with self._gate:
            self.nudge()
            if self._thread is None and not self.ended:
                # It says itself that it lives: of two that an interrupt made of one, the second ends at once.
                threading.Thread(target=self._run, name="pyllm-engine", daemon=True).start()

    def nudge(self) -> None:
        """Let the thread look where it lives; else nothing happens. Finalizers may call."""
        with self._gate:
            self._woken = True
            while self._sleeping:
                self._sleeping.pop()()

    def call(self, function: Callable[[], object]) -> None:
        """Run a function between two steps, and wait until that is done. Raises what it raises."""
        if self.ended or self._thread == threading.get_ident():
            function()
            return
        errors: list[Exception] = []
        wait, done = waiter()

        def run() -> None:
            try:
                function()
            except Exception as error:
                errors.append(error)
            finally:
                done()

        self._calls.append(run)
        self.wake()
        wait()
        if errors:
            raise errors[0]

    def end(self) -> None:
        """End the thread, for good; waits for that, some seconds at most."""
        wait, done = waiter()
        with self._gate:
            self.ended = True
            if self._thread in (None, threading.get_ident()):
                return
            self._waiting_for_end.append(done)
            self.nudge()
        if (driven := self._driven()) is not None:
            driven.stop()
            del driven
        wait(5.0)

    def _run(self) -> None:
        with self._gate:
            if self._thread is not None or self.ended:
                return
            self._thread = threading.get_ident()
        while self._work() or self._sleep():
            pass

    def _work(self) -> bool:
        """What was called for and a step; whether there is to be another at once."""
        self._woken = False
        while self._calls:
            self._calls.popleft()()
        driven = self._driven()
        return driven is not None and not self.ended and driven.step()

    def _sleep(self) -> bool:
        """Wait until it is woken; False where the thread ends."""
        wait, wake = waiter()
        with self._gate:
            if not self._woken:
                self._sleeping.append(wake)
        if not self._woken:
            wait(LINGER)
        with self._gate:
            self._sleeping.clear()
            if self._woken and not self.ended and self._driven() is not None:
                return True
            self._thread = None
            while self._waiting_for_end:
                self._waiting_for_end.pop()()
            return False
