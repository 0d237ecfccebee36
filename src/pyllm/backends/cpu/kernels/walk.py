"""The compiled loop that every thread runs: call each kernel of a table, wait for the others, go on.

POOL block, int64 slots, one cache line for what is written together (`threads` fills it):

 0 table (pairs of kernel address, args address)   1 number of ops   2 address of the interrupt flag
 3 address of a function that yields the processor   4 of one that sleeps   5 its argument
 6 ticks to spin before yielding   7 before sleeping   8 that an idle worker stays   9 of thread 0's slice
16 threads that have arrived at the barrier
24 the barrier's generation: twice its count, plus one when the step ends there because of an interrupt
32 number of the step that is to be walked   33 non-zero: workers leave
40 op at which thread 0 goes on   41 0 its slice is over, 1 done, 2 interrupted   42 the clock, for calibration
48 + 8 * thread: number of the last step that the worker saw
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import register_jitable

from pyllm.backends.cpu.simd import atomic_add, atomic_load, atomic_store, load_i64, pause, store_i64
from pyllm.backends.cpu.simd.core import I32, I64, call, op, target

_VOID = ir.VoidType()


@op(types.void, types.int64, types.int64, types.int64, types.int64)
def call_kernel(b: Any, a: Any) -> Any:
    """Call the kernel at address a0 with (a1, a2, a3)."""
    b.call(b.inttoptr(a[0], ir.FunctionType(_VOID, [I64] * 3).as_pointer()), a[1:])


@op(types.void, types.int64, types.int64)
def call_system(b: Any, a: Any) -> Any:
    """Call a C function of one 32-bit integer (or none: then it ignores it)."""
    b.call(b.inttoptr(a[0], ir.FunctionType(I32, [I32]).as_pointer()), [b.trunc(a[1], I32)])


@op(types.int64)
def ticks(b: Any, a: Any) -> Any:
    """The processor's clock, in units that `threads` calibrates."""
    # On arm64 the cycle counter is not open to programs; the steady one is.
    return call(b, "llvm.readsteadycounter" if target().is_arm64 else "llvm.readcyclecounter", I64, [])


@register_jitable
def _idle(pool: int, since: int) -> int:
    """Wait a little, by how long one has waited; returns that in ticks."""
    waited = ticks() - since
    if waited < load_i64(pool + 48):
        pause()
    elif waited < load_i64(pool + 56):
        call_system(load_i64(pool + 24), 0)
    else:
        call_system(load_i64(pool + 32), load_i64(pool + 40))
    return waited


@register_jitable
def _barrier(pool: int, counter: int, n_threads: int) -> int:
    """Wait until all threads are here. The last one clears the op's work counter and decides whether the step goes on.

    Returns 1 when the step ends here, the same to every thread: they read it off the generation that releases them.
    """
    generation = atomic_load(pool + 192)
    if atomic_add(pool + 128, 1) == n_threads - 1:
        store_i64(counter, 0)
        store_i64(pool + 128, 0)
        stop = 1 if atomic_load(load_i64(pool + 16)) != 0 else 0
        atomic_store(pool + 192, (generation >> 1) * 2 + 2 + stop)
        return stop
    since = ticks()
    while True:
        now = atomic_load(pool + 192)
        if now != generation:
            return now & 1
        _idle(pool, since)


@register_jitable
def _one(pool: int, entry: int, thread: int, n_threads: int) -> int:
    args = load_i64(entry + 8)
    call_kernel(load_i64(entry), args, thread, n_threads)
    return _barrier(pool, load_i64(args + 8), n_threads)


def lead() -> Callable[[int, int, int], None]:
    """Thread 0's walk. It comes back when its slice of time is over, so that Python can run signal handlers."""

    def k(pool: int, thread: int, n_threads: int) -> None:
        table = load_i64(pool)
        n_ops = load_i64(pool + 8)
        i = load_i64(pool + 320)
        end = ticks() + load_i64(pool + 72)
        status = 1
        while i < n_ops:
            stop = _one(pool, table + 16 * i, thread, n_threads)
            i += 1
            if stop != 0:
                status = 2
                break
            if ticks() > end and i < n_ops:
                status = 0
                break
        store_i64(pool + 320, i)
        store_i64(pool + 328, status)
        store_i64(pool + 336, ticks())

    return k


def follow() -> Callable[[int, int, int], None]:
    """A worker's walk: step after step as they come, until none has come for a while."""

    def k(pool: int, thread: int, n_threads: int) -> None:
        mine = pool + 384 + 64 * thread
        seen = load_i64(mine)
        while True:
            since = ticks()
            step = atomic_load(pool + 256)
            while step == seen:
                if _idle(pool, since) > load_i64(pool + 64):
                    return
                step = atomic_load(pool + 256)
            seen = step
            store_i64(mine, seen)
            if load_i64(pool + 264) != 0:
                return
            table = load_i64(pool)
            n_ops = load_i64(pool + 8)
            for i in range(n_ops):
                if _one(pool, table + 16 * i, thread, n_threads) != 0:
                    break

    return k
