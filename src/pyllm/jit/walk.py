"""The compiled loop of every thread: work-stealing through a table of ops, with a gate for each op.

An op is done when all its work items are taken and the threads that took some have finished; threads that have not
entered are not waited for. So a thread that is descheduled between two ops delays nothing: afterwards it skips the ops
that are done and joins the current one. A kernel must therefore take items from its counter until none is left.

Table row: kernel address, args address, gate address, unused. A gate is 65536 * (last step that closed the op) + number
of threads in its kernel.

POOL block, int64 slots, one cache line for what is written together (`threads` fills it):

 0 address of a function that yields the processor   1 of one that sleeps   2 its argument
 3 ticks to spin before yielding   4 before sleeping   5 that an idle worker stays   6 of thread 0's slice
 8 table   9 ops   10 address of the interrupt flag; of even steps. 16, 17, 18: of odd ones
24 number of the current step   25 non-zero: workers leave
32 last step that an interrupt ended
40 op at which thread 0 goes on   41 0: its slice is over, 1: done, 2: interrupted   42 the clock, for calibration
48 + 8 * thread: number of the last step that the worker saw
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import register_jitable

from pyllm.jit.simd import atomic_load, atomic_store, load_i64, pause, store_i64
from pyllm.jit.simd.core import I32, I64, call, op, target

_VOID = ir.VoidType()


@op(types.void, types.int64, types.int64, types.int64, types.int64)
def call_kernel(b: Any, a: Any) -> Any:
    """Call the kernel at address a0 with (a1, a2, a3)."""
    b.call(b.inttoptr(a[0], ir.FunctionType(_VOID, [I64] * 3).as_pointer()), a[1:])


@op(types.void, types.int64, types.int64)
def call_system(b: Any, a: Any) -> Any:
    """Call a C function of one 32-bit integer (or none: then it ignores it)."""
    b.call(b.inttoptr(a[0], ir.FunctionType(I32, [I32]).as_pointer()), [b.trunc(a[1], I32)])


@op(types.boolean, types.int64, types.int64, types.int64)
def swap(b: Any, a: Any) -> Any:
    """If the number at a0 is a1, make it a2; whether it was. A full barrier."""
    pair = b.cmpxchg(b.inttoptr(a[0], I64.as_pointer()), a[1], a[2], "seq_cst", "seq_cst")
    return b.extract_value(pair, 1)


@op(types.int64)
def ticks(b: Any, a: Any) -> Any:
    """The processor's clock, in units that `threads` calibrates."""
    # On arm64 the cycle counter is not open to programs; the steady one is.
    return call(b, "llvm.readsteadycounter" if target().is_arm64 else "llvm.readcyclecounter", I64, [])


@register_jitable
def _idle(pool, since):
    """Spin, yield or sleep, by the time waited so far; returns that time in ticks."""
    waited = ticks() - since
    if waited < load_i64(pool + 24):
        pause()
    elif waited < load_i64(pool + 32):
        call_system(load_i64(pool), 0)
    else:
        call_system(load_i64(pool + 8), load_i64(pool + 16))
    return waited


@register_jitable
def _enter(gate, step):
    """Enter an op of this step; False where it is closed."""
    while True:
        v = atomic_load(gate)
        if v >> 16 >= step:
            return False
        if swap(gate, v, v + 1):
            return True


@register_jitable
def _leave(pool, gate, step, counter, flag):
    """Leave the op and close it: no item is left. The last thread to leave clears the work counter, and ends the step
    here if the interrupt flag is set."""
    while True:
        v = atomic_load(gate)
        inside = v & 65535
        if v >> 16 < step:
            swap(gate, v, (step << 16) + inside)
        elif inside > 1:
            if swap(gate, v, v - 1):
                return
        else:  # closed, so no thread enters any more
            store_i64(counter, 0)
            if atomic_load(flag) != 0:
                atomic_store(pool + 256, step)
            atomic_store(gate, v - 1)
            return


@register_jitable
def _one(pool, row, step, flag, thread, n_threads):
    """Work on one op, then wait until it is done."""
    gate = load_i64(row + 16)
    if _enter(gate, step):
        args = load_i64(row + 8)
        call_kernel(load_i64(row), args, thread, n_threads)
        _leave(pool, gate, step, load_i64(args + 8), flag)
    if atomic_load(gate) & 65535 != 0:
        since = ticks()
        while atomic_load(gate) & 65535 != 0:
            _idle(pool, since)


def lead() -> Callable[[int, int, int], None]:
    """Thread 0's walk. Returns when its time slice is over, so that Python can run signal handlers."""

    def k(pool: int, thread: int, n_threads: int) -> None:
        step = load_i64(pool + 192)
        config = pool + 64 + 64 * (step & 1)
        table, n_ops, flag = load_i64(config), load_i64(config + 8), load_i64(config + 16)
        i = load_i64(pool + 320)
        end = ticks() + load_i64(pool + 48)
        status = 1
        while i < n_ops:
            _one(pool, table + 32 * i, step, flag, thread, n_threads)
            i += 1
            if atomic_load(pool + 256) >= step:
                status = 2
                break
            if ticks() > end and i < n_ops:
                status = 0
                break
        store_i64(pool + 320, i)
        store_i64(pool + 336, ticks())
        store_i64(pool + 328, status)

    return k


def follow() -> Callable[[int, int, int], None]:
    """A worker's walk: step after step, until none has come for a while."""

    def k(pool: int, thread: int, n_threads: int) -> None:
        mine = pool + 384 + 64 * thread
        seen = load_i64(mine)
        while True:
            since = ticks()
            step = atomic_load(pool + 192)
            while step == seen:
                if _idle(pool, since) > load_i64(pool + 40):
                    return
                step = atomic_load(pool + 192)
            config = pool + 64 + 64 * (step & 1)
            table, n_ops, flag = atomic_load(config), atomic_load(config + 8), atomic_load(config + 16)
            if atomic_load(pool + 192) != step:
                continue  # late: a later step has begun and may be overwriting the values just read
            seen = step
            store_i64(mine, seen)
            if load_i64(pool + 200) != 0:
                return
            for i in range(n_ops):
                _one(pool, table + 32 * i, step, flag, thread, n_threads)
                if atomic_load(pool + 256) >= step:
                    break

    return k
