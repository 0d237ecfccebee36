"""The thread that runs an executable's steps, for any calling thread.

mlx caches compiled functions by thread, and within a thread by the address of the Python function. Called from several
threads, they would be compiled in each, keep their weights alive after the executable is gone, and be reused for any
later function at the same address. All of that ends with the thread.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")


class Worker:
    """A single thread, started by the first work."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "pyllm-mlx")

    def run(self, work: Callable[[], T], stop: Callable[[], None]) -> T:
        """Run `work` in the thread; returns or raises as it does. On Ctrl-C, `stop` is called to end the work, and its
        end is waited for."""
        future = self._pool.submit(work)
        try:
            return future.result()
        except KeyboardInterrupt:
            if not future.done():
                stop()
                wait([future])
            raise
        finally:
            del future  # it may hold an error, whose traceback refers to this frame

    def close(self) -> None:
        """End the thread after its current work. Further calls do nothing."""
        self._pool.shutdown()
