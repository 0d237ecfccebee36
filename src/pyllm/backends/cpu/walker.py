"""Walks of all threads over tables, which `interrupt` ends; the lanes of an executable take turns."""

from __future__ import annotations

import threading
from math import inf

import numpy as np

from pyllm.backends.cpu.table import Encoded
from pyllm.errors import ClosedError
from pyllm.jit.memory import aligned_zeros
from pyllm.jit.threads import Pool


class Walker:
    """An executable's threads. One caller at a time, except `interrupt`."""

    def __init__(self, n_threads: int) -> None:
        self.pool = Pool(n_threads)
        self.closed = False
        self._flag = aligned_zeros((8,), np.int64)
        self._address = int(self._flag.ctypes.data)
        self._running = self._interrupted = False
        self._lock = threading.RLock()  # a signal handler may interrupt the thread that holds it

    def check_open(self) -> None:
        """Raise ClosedError where it was closed; memory is gone then."""
        if self.closed:
            raise ClosedError("the model was closed")

    def walk(self, table: Encoded, first: int, last: int, seconds: float = inf) -> int:
        """Run the ops from `first` to before `last`, for about so long; returns the op to go on with.

        Raises KeyboardInterrupt.
        """
        with self._lock:
            self._flag[0], self._running, self._interrupted = 0, True, False
        try:
            done = self.pool.advance(table.address + 32 * first, last - first, self._address, seconds)
        finally:
            with self._lock:
                self._running = False
        if self._interrupted:
            raise KeyboardInterrupt
        return first + done

    def interrupt(self) -> None:
        """End the walk that is under way, from any thread; without one, nothing happens."""
        with self._lock:
            if self._running:
                self._flag[0] = self._interrupted = True

    def close(self) -> None:
        self.closed = True
        self.pool.close()
