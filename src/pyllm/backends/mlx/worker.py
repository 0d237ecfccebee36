"""The thread that an executable's steps run in, whoever asks for them.

mlx keeps compiled functions by thread, and within a thread by the address of the Python function: called from several
threads, they are compiled in each, stay there with the weights that they hold when the executable is gone, and answer
for whatever function gets their address next. All of that ends with the thread.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")


class Worker:
    """One thread, started by the first work."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "pyllm-mlx")

    def run(self, work: Callable[[], T], stop: Callable[[], None]) -> T:
        """What `work` returns or raises. Where Ctrl-C arrives meanwhile, `stop` is to end the work, which is waited
        for: what comes after it finds nothing running."""
        future = self._pool.submit(work)
        try:
            return future.result()
        except KeyboardInterrupt:
            if not future.done():
                stop()
                wait([future])
            raise
        finally:
            del future  # it holds an error, whose traceback holds this frame

    def close(self) -> None:
        """End the thread after what it does. Calling it again does nothing."""
        self._pool.shutdown()
