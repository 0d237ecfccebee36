"""A thread pool that walks a table of kernels: the caller and workers, which spin between steps and then sleep."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
import weakref
from math import inf

import numpy as np
from numpy.typing import NDArray

from pyllm.errors import ClosedError
from pyllm.jit.compiler import LIBRARY, kernel
from pyllm.jit.memory import aligned_zeros

KERNEL_TYPE = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)

SPIN_US = 40
"""Time that a waiting thread spins before it yields its processor."""
YIELD_US = 1_000
"""Time that it then yields, before it sleeps."""
IDLE_US = 2_000
"""Time that a worker waits for the next step before it leaves compiled code and blocks."""
SLICE_US = 50_000
"""Longest time in compiled code before the calling thread lets Python run signal handlers."""


class _Shared:
    """State shared by the threads. Workers refer to this and not to the pool, so that an unused pool is collected."""

    def __init__(self, n_threads: int, step: int) -> None:
        self.block: NDArray[np.int64] = aligned_zeros((48 + 8 * n_threads,), np.int64)
        self.block[24] = self.block[32] = step
        self.block[48::8] = step
        self.step = ctypes.c_int64.from_address(self.block.ctypes.data + 8 * 24)
        self.wake = threading.Condition()
        self.closed = False
        self.workers: list[threading.Thread] = []
        self.pid = os.getpid()


class Pool:
    """`n_threads` threads, the caller's among them. One caller at a time."""

    KERNELS = (kernel("jit.walk", "lead"), kernel("jit.walk", "follow"))

    def __init__(self, n_threads: int) -> None:
        self.n_threads = max(1, n_threads)
        code = LIBRARY.load(self.KERNELS)
        self._lead, self._follow = (KERNEL_TYPE(code[k]) for k in self.KERNELS)
        self._own = aligned_zeros(
            (16,), np.int64
        )  # 0: an interrupt flag that is never set, 4..7: the table of `run`, 8: its gate
        self._flag = int(self._own.ctypes.data)
        self._own[6] = self._flag + 64
        self._ticks_per_us = 0.0
        self._start(0)

    def _start(self, step: int) -> None:
        """Start threads; `step` continues the old step numbers, which gates still hold."""
        self._shared = s = _Shared(self.n_threads, step)
        self._address = int(s.block.ctypes.data)
        self._configs = [(ctypes.c_int64 * 3).from_address(self._address + at) for at in (64, 128)]
        self._slice = ctypes.c_int64.from_address(self._address + 48)
        self._resume = ctypes.c_int64.from_address(self._address + 320)
        self._status = ctypes.c_int64.from_address(self._address + 328)
        self._ended = step
        s.block[:3] = _system_calls()
        if not self._ticks_per_us:
            self._ticks_per_us = self._calibrate()
        # With fewer processors than threads, the awaited thread may need this processor.
        spin = SPIN_US if self.n_threads <= _n_processors() else 1
        s.block[3:7] = [int(us * self._ticks_per_us) for us in (spin, YIELD_US, IDLE_US, SLICE_US)]
        for i in range(1, self.n_threads):
            args = (s, self._follow, self._address, i, self.n_threads)
            s.workers.append(threading.Thread(target=_work, args=args, name=f"pyllm-{i}", daemon=True))
        for w in s.workers:
            w.start()
        self._finalizer = weakref.finalize(self, _end, s)

    def _calibrate(self) -> float:
        def now() -> tuple[int, int]:
            self._lead(self._address, 0, 1)
            return time.perf_counter_ns(), int(self._shared.block[42])

        t0, c0 = now()
        time.sleep(0.002)
        t1, c1 = now()
        return max(1e-3, (c1 - c0) / (t1 - t0) * 1e3)

    def walk(self, table: int, n_ops: int, flag: int | None = None) -> bool:
        """Run a table (address of pairs) on all threads; True when it was run to its end.

        `flag` is the address of an int64 that ends the walk after the current op when it becomes non-zero; False is
        returned then. An exception from a signal handler ends it likewise and is raised after every thread has left.
        """
        self._walk(table, n_ops, flag or self._flag, inf)
        return self._status.value == 1

    def advance(self, table: int, n_ops: int, flag: int, seconds: float) -> int:
        """Run a table for about so long, at least one op; returns the number of ops that are done, for another walk to
        go on with the next.

        Ends as `walk` does when `flag` becomes non-zero; also sets it, when the time is over.
        """
        return self._walk(table, n_ops, flag, seconds)

    def _walk(self, table: int, n_ops: int, flag: int, seconds: float) -> int:
        if self._shared.closed:
            raise ClosedError("the model was closed")
        if self._shared.pid != os.getpid():
            self._finalizer.detach()  # the workers stayed in the parent process
            self._start(self._shared.step.value)
        self._abandon()
        step = self._shared.step
        until = time.perf_counter() + seconds
        try:
            self._configs[step.value + 1 & 1][:] = [table, n_ops, flag]
            self._resume.value = self._status.value = 0
            step.value += 1
            return self._finish(until)
        except BaseException:
            self._abandon()
            raise

    def run(self, kernel_address: int, args: int) -> None:
        """Run one kernel on all threads. All work must come from its counter (slot 1), which must be zero."""
        self._own[4:6] = kernel_address, args
        self.walk(self._flag + 32, 1)

    def _finish(self, until: float = inf) -> int:
        """Walk until the step is done, or ended by its flag, which is set at this time; returns the number of ops that
        are done. A step is under way while its number is not the last one that ended."""
        s = self._shared
        if s.workers:
            with s.wake:
                s.wake.notify_all()
        while not self._status.value:
            left = until - time.perf_counter()
            if left <= 0:
                self._flag_of_step().value = 1
            self._slice.value = int(min(SLICE_US, 1e6 * max(0.0, left)) * self._ticks_per_us)
            self._lead(self._address, 0, self.n_threads)
        n_ops = self._configs[s.step.value & 1][1] if self._status.value == 1 else self._n_done()
        self._ended = s.step.value
        return n_ops

    def _n_done(self) -> int:
        """How many ops of a step are done that its flag has ended. Waits for the thread that ended it: it may not have
        left the gate of its op yet, which the next step must not find so."""
        step = self._shared.step.value
        table, n_ops, _ = self._configs[step & 1]

        def gate(op: int) -> int:
            return _at(_at(table + 32 * op + 16).value).value

        done = self._resume.value
        while done < n_ops and gate(done) >> 16 >= step:  # another thread was ahead of this one
            done += 1
        while gate(done - 1) & 65535:
            time.sleep(0)
        return done

    def _abandon(self) -> None:
        """End a walk that an exception cut short. If another exception comes, the next walk does it."""
        if self._ended == self._shared.step.value or self._shared.pid != os.getpid():
            return
        flag = self._flag_of_step()
        flag.value = 1
        self._finish()
        flag.value = 0

    def _flag_of_step(self) -> ctypes.c_int64:
        return _at(self._configs[self._shared.step.value & 1][2])

    def close(self) -> None:
        """End the threads. Calling it again does nothing."""
        if not self._shared.closed:
            self._abandon()
        self._finalizer()


def _work(s: _Shared, follow: object, address: int, thread: int, n_threads: int) -> None:
    """Run by each worker: wait for steps and walk them, until the pool is closed."""
    seen = ctypes.c_int64.from_address(address + 384 + 64 * thread)
    while not s.closed:
        follow(address, thread, n_threads)  # type: ignore[operator]
        with s.wake:
            while s.step.value == seen.value and not s.closed:
                s.wake.wait()


def _end(s: _Shared) -> None:
    if s.closed:
        return
    s.closed = True
    if s.pid != os.getpid():
        return
    s.block[25] = 1
    s.step.value += 1
    with s.wake:
        s.wake.notify_all()
    for w in s.workers:
        if w is not threading.current_thread():
            w.join(timeout=10.0)


def _at(address: int) -> ctypes.c_int64:
    return ctypes.c_int64.from_address(address)


def _n_processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _system_calls() -> tuple[int, int, int]:
    """Addresses of the functions that yield and sleep, and what to give the latter for about 50 us."""
    if sys.platform == "win32":
        lib, names, arg = ctypes.WinDLL("kernel32"), ("SwitchToThread", "Sleep"), 1
    else:
        lib, names, arg = ctypes.CDLL(None), ("sched_yield", "usleep"), 50
    yields, sleeps = (ctypes.cast(getattr(lib, n), ctypes.c_void_p).value or 0 for n in names)
    return yields, sleeps, arg
