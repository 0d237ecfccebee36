"""Bounded queues between the computing thread and readers in threads and event loops."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from pyllm.engine.wakes import LoopBell, Sleeper, Wakes

T = TypeVar("T")


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
        self._waiting: deque[Callable[[Wakes], None]] = deque()

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

    def notify(self, wakes: Wakes) -> None:
        """Have the reader woken, if there are as many items as it waits for."""
        if self._waiting and self.has(self._enough):
            while self._waiting:
                try:
                    add = self._waiting.popleft()
                except IndexError:
                    return
                add(wakes)
        if self.closed and self.on_close is not None:
            self.on_close()

    def has(self, enough: int) -> bool:
        return self.closed or len(self._items) >= enough

    def wait(self, enough: int = 1) -> None:
        """Wait until there are `enough` items, or no further one comes."""
        self._enough = min(enough, self.capacity)
        sleeper = Sleeper()
        self._waiting.append(sleeper.join)
        sleeper.sleep(lambda: self.has(self._enough))

    async def wait_async(self, enough: int = 1) -> None:
        """`wait` in an event loop."""
        import asyncio

        self._enough = min(enough, self.capacity)
        bell = LoopBell.of(asyncio.get_running_loop())
        future = bell.future()
        self._waiting.append(lambda wakes: bell.add(future, wakes))
        if not self.has(self._enough):
            await future
