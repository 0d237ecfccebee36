"""Awaitables that are started before they are awaited, to learn whether they wait at all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Generator
from contextlib import suppress
from types import coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Begun(Generic[T]):
    """An awaitable, run up to where it first waits; then await it in the same task, or `stop` it.

    Cheaper than a task, and without a turn of the event loop. What it waits in must have no `asyncio.timeout`, which
    would interrupt whatever the task does then.
    """

    __slots__ = ("_error", "_found", "_steps", "_waits_for", "done")

    def __init__(self, work: Awaitable[T]) -> None:
        self._steps = work.__await__()
        self._waits_for: Any = None
        self._found: Any = None
        self._error: BaseException | None = None
        self.done = True
        """Whether it ended, or failed, without waiting; or was awaited."""
        try:
            self._waits_for = next(self._steps)
            self.done = False
        except StopIteration as end:
            self._found = end.value
        except BaseException as error:
            self._error = error

    def __await__(self) -> Generator[Any, Any, T]:
        if not self.done:
            found: T = yield from self._rest(None)
            return found
        if (error := self._error) is not None:
            self._error = None  # the error knows the frame that holds this object
            try:
                raise error
            finally:
                del error
        return self._found

    async def stop(self) -> None:
        """End it as a cancellation does, if it waits."""
        if not self.done:
            with suppress(asyncio.CancelledError, Exception):
                await self._rest(asyncio.CancelledError())

    @coroutine
    def _rest(self, error: BaseException | None) -> Generator[Any, Any, Any]:
        """Its further steps, the first of which raises `error`."""
        self.done = True
        try:
            waits_for = self._waits_for if error is None else self._steps.throw(error)
            while True:
                try:
                    sent = yield waits_for
                except BaseException as raised:
                    waits_for = self._steps.throw(raised)
                else:
                    waits_for = self._steps.send(sent)
        except StopIteration as end:
            return end.value
