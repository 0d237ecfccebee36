"""Waiting for the computing thread, and being woken by it, at little cost for it.

A signal that comes just before a wait doesn't interrupt it, and on Windows none does; so threads wait in slices.
"""

from __future__ import annotations

import threading
import weakref
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import asyncio

SLICE = 0.1
"""Seconds after which a waiting thread looks for Ctrl-C."""
_FURTHER = 2
"""Threads that a woken one wakes."""


def waiter() -> tuple[Callable[..., bool], Callable[[], None]]:
    """Two functions: the first waits, some seconds or for ever, until the second has been called, once.

    Returns whether that was so. Ctrl-C gets through.
    """
    lock = allocate_lock()
    lock.acquire()

    def wait(seconds: float = -1) -> bool:
        if seconds >= 0:
            return lock.acquire(timeout=seconds)
        while not lock.acquire(timeout=SLICE):
            pass
        return True

    return wait, lock.release


class Wakes:
    """Readers to be woken after a step.

    An event loop takes one call. Of threads one is woken, which wakes two more, and so on: a system call for each would
    delay the next step.
    """

    def __init__(self) -> None:
        self.loops: set[LoopBell] = set()
        self.threads: deque[Callable[[], None]] = deque()

    def ring(self) -> None:
        while self.loops:
            self.loops.pop().ring()
        self.wake_threads(1)

    def wake_threads(self, n: int) -> None:
        for _ in range(n):
            try:
                wake = self.threads.popleft()
            except IndexError:
                return
            wake()


class Sleeper:
    """A thread that waits, once."""

    def __init__(self) -> None:
        self._wait, self._wake = waiter()
        self._wakes: Wakes | None = None
        self._awake = False

    def join(self, wakes: Wakes) -> None:
        """Be woken with others."""
        if not self._awake:
            self._wakes = wakes
            wakes.threads.append(self._wake)

    def sleep(self, is_over: Callable[[], bool]) -> None:
        """Wait until that is so, and wake others then.

        It is asked again after each slice: a thread that should have woken this one may have been interrupted.
        """
        try:
            while not is_over() and not self._wait(SLICE):
                pass
        finally:
            self._awake = True
            if self._wakes is not None:
                self._wakes.wake_threads(_FURTHER)


class LoopBell:
    """Wakes all waiting readers of an event loop by one call."""

    _known: ClassVar[weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopBell]] = weakref.WeakKeyDictionary()
    _gate = threading.Lock()

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._ready: deque[asyncio.Future[None]] = deque()

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> LoopBell:
        """The bell of a loop, which is the running one."""
        bell = cls._known.get(loop)
        if bell is None:
            with cls._gate:
                bell = cls._known.setdefault(loop, LoopBell(loop))
        return bell

    def future(self) -> asyncio.Future[None]:
        """What a reader in the loop awaits."""
        loop = self._loop()
        assert loop is not None
        return loop.create_future()

    def add(self, future: asyncio.Future[None], wakes: Wakes) -> None:
        self._ready.append(future)
        wakes.loops.add(self)

    def ring(self) -> None:
        """Let the loop wake its readers. Of a loop that is closed, nobody waits any more."""
        loop = self._loop()
        if loop is not None:
            try:
                loop.call_soon_threadsafe(self._wake)
            except RuntimeError:
                self._ready.clear()

    def _wake(self) -> None:
        while self._ready:
            future = self._ready.popleft()
            if not future.done():
                future.set_result(None)
