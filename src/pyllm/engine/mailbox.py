"""Bounded queues between the computing thread and readers in threads and event loops."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from pyllm.engine.pump import waiter

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")

Wake = Callable[["set[LoopBell]"], None]
"""Wakes a reader; of an event loop, its bell is added to the set, to be rung when all are woken."""


class Mailbox(Generic[T]):
    """A queue for one reader. At `capacity` it counts as full, which stops its sequence; `put` never refuses."""

    __slots__ = ("_enough", "_items", "_waiting", "capacity", "closed", "on_close")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.closed = False
        """No further item comes."""
        self.on_close: Callable[[], None] | None = None
        """Called once no further item comes."""
        self._items: deque[T] = deque()
        self._enough = 1
        self._waiting: deque[Wake] = deque()

    def __len__(self) -> int:
        return len(self._items)

    @property
    def full(self) -> bool:
        return len(self._items) >= self.capacity

    def put(self, item: T) -> None:
        self._items.append(item)

    def take(self) -> T | None:
        """The next item, None where there is none."""
        try:
            return self._items.popleft()
        except IndexError:  # it may have been cleared just now
            return None

    def clear(self) -> None:
        self._items.clear()

    def notify(self, bells: set[LoopBell]) -> None:
        """Wake the reader, if there are as many items as it waits for."""
        if self._waiting and self.has(self._enough):
            while self._waiting:
                try:
                    wake = self._waiting.popleft()
                except IndexError:
                    return
                wake(bells)
        if self.closed and self.on_close is not None:
            self.on_close()

    def has(self, enough: int) -> bool:
        return self.closed or len(self._items) >= enough

    def wait(self, enough: int = 1) -> None:
        """Wait until there are `enough` items, or no further one comes."""
        wait, wake = waiter()
        self._enough = min(enough, self.capacity)
        self._waiting.append(lambda bells: wake())
        if not self.has(self._enough):
            wait()

    async def wait_async(self, enough: int = 1) -> None:
        """`wait` in an event loop."""
        import asyncio

        bell = LoopBell.of(asyncio.get_running_loop())
        future: asyncio.Future[None] = bell.loop.create_future()
        self._enough = min(enough, self.capacity)
        self._waiting.append(lambda bells: bell.add(future, bells))
        if not self.has(self._enough):
            await future


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

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        loop = self._loop()
        assert loop is not None
        return loop

    def add(self, future: asyncio.Future[None], bells: set[LoopBell]) -> None:
        self._ready.append(future)
        bells.add(self)

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
