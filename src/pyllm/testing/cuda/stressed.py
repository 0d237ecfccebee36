"""A stressed emulated device: rare but allowed behaviour of a card, and reports of misuse of memory, by a seed.

- What is enqueued runs when it must, or any time before: copies read and write the host's memory late. An array that is
  downloaded holds NaN bytes until then.
- Threads of a block run in random order wherever they wait, and so do blocks (emulator/stress.h).
- Memory ends, or begins, at a page that must not be touched; a kernel that does is reported with its thread.

For every seed, results must be the same to the last bit. `PYLLM_CUDA_EMULATOR_STRESS=seed` makes every emulated
device one of these.
"""

from __future__ import annotations

import ctypes
import mmap
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.backends.cuda.launcher import Event, Kernel
from pyllm.errors import BackendError
from pyllm.testing.cuda.emulated import ALIGNMENT, MEMORY, EmulatedLauncher

_FAULTS = threading.Lock()
"""Held while a kernel runs: faults belong to the process."""


class _StressedEvent(Event):
    def __init__(self, launcher: StressedLauncher) -> None:
        self.launcher = launcher
        self.passed_at: float | None = None

    def done(self) -> bool:
        if self.passed_at is None:
            self.launcher.run_some()
        return self.passed_at is not None

    def wait(self) -> None:
        self.launcher.run_until(self)

    def seconds_since(self, start: Event) -> float:
        assert isinstance(start, _StressedEvent)
        assert self.passed_at is not None
        assert start.passed_at is not None
        return self.passed_at - start.passed_at


class StressedLauncher(EmulatedLauncher):
    """An emulated device whose stream, threads and memory behave as badly as a card's may."""

    def __init__(self, index: int = 0, memory: int = MEMORY, seed: int = 1) -> None:
        super().__init__(index, memory)
        self._n_threads = 1
        self._random = random.Random(64 * seed + index)
        self._queue: deque[Callable[[], object] | _StressedEvent] = deque()

    # --- the stream

    def _enqueue(self, step: Callable[[], object]) -> None:
        if self._closed or self._graph is not None:
            return super()._enqueue(step)
        self._queue.append(step)
        if self._random.random() < 0.25:
            self.run_some()
        return None

    def run_some(self) -> None:
        """Run some enqueued work, maybe none. Raises its errors, and drops the rest."""
        for _ in range(self._random.choice((0, 1, 3, 100))):
            if not self._queue:
                break
            self._run_next()

    def run_until(self, event: _StressedEvent) -> None:
        while event.passed_at is None and self._queue:
            self._run_next()

    def _run_next(self) -> None:
        step = self._queue.popleft()
        if isinstance(step, _StressedEvent):
            step.passed_at = time.perf_counter()
            return
        try:
            step()
        except BaseException:
            for left in self._queue:
                if isinstance(left, _StressedEvent):
                    left.passed_at = time.perf_counter()
            self._queue.clear()
            raise

    def record(self, timing: bool = False) -> Event:
        event = _StressedEvent(self)
        self._queue.append(event)
        return event

    def stream_wait(self, event: Event) -> None:
        if isinstance(event, _StressedEvent) and event.launcher is not self:
            self._enqueue(lambda: event.launcher.run_until(event))

    def synchronize(self) -> None:
        while self._queue:
            self._run_next()

    def download(self, array: NDArray[Any], address: int, wait: bool = False) -> None:
        if self._graph is None and array.nbytes and array.flags.c_contiguous:
            array.reshape(-1).view(np.uint8)[:] = 0xFF
        super().download(array, address, wait)

    def close(self) -> None:
        while self._queue:
            with suppress(BackendError):
                self.synchronize()
        super().close()

    # --- memory

    def _room(self, n_bytes: int) -> tuple[NDArray[np.uint8], int]:
        page = mmap.PAGESIZE
        size = -(-max(1, n_bytes) // page) * page
        pages = mmap.mmap(-1, size + 2 * page)
        memory = np.frombuffer(pages, np.uint8)
        for guard in (memory.ctypes.data, memory.ctypes.data + page + size):
            if ctypes.CDLL(None).mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 0):
                raise BackendError("the system does not protect pages, which a stressed device needs")
        at_end = size - -(-n_bytes // ALIGNMENT) * ALIGNMENT
        return memory[page : page + size], at_end if self._random.random() < 0.75 else 0

    def release(self, address: int) -> None:
        if address in self._blocks:
            self.synchronize()
        super().release(address)

    # --- kernels

    def _seed(self) -> int:
        return self._random.getrandbits(63) | 1

    def _run(self, kernel: Kernel, grid: tuple[int, int, int], block: int, args: NDArray[np.void], shared: int) -> None:
        with _FAULTS:
            super()._run(kernel, grid, block, args, shared)
