"""The pool of threads: every op once, barriers, interrupts, more threads than processors, forks, ends."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from cpu_tools import Memory
from numpy.typing import NDArray

from pyllm.backends.cpu.arguments.elementwise import Elementwise
from pyllm.errors import ClosedError
from pyllm.jit.compiler import LIBRARY, kernel
from pyllm.jit.memory import aligned_zeros
from pyllm.jit.threads import Pool


def chain(n_ops: int, size: int = 4096, n_rows: int = 8) -> tuple[NDArray[np.int64], NDArray[np.float32], list[object]]:
    """A table of sums, each op's input the one before's output, so that a missing barrier or a lost row shows."""
    k = kernel("backends.cpu.kernels.elementwise", "elementwise", kind="add")
    address = LIBRARY.load([k])[k]
    values = aligned_zeros((3, n_rows, size), np.float32)
    step = aligned_zeros((32,), np.int64)
    step[1] = n_rows
    blocks, counters = aligned_zeros((n_ops, 16), np.int64), aligned_zeros((n_ops, 8), np.int64)
    table = np.zeros((n_ops, 4), np.int64)
    one = values[2]
    one[:] = 1
    for i in range(n_ops):
        x, y = values[i % 2], values[(i + 1) % 2]
        args = Elementwise(x=Memory(x), b=Memory(one), y=Memory(y), columns=size, rows=Memory(step))
        block = args.block(step.ctypes.data, counters[i].ctypes.data)
        blocks[i, : len(block)] = block
        table[i] = address, blocks[i].ctypes.data, counters[i, 1:].ctypes.data, 0
    return table, values, [step, blocks, counters]


@pytest.mark.parametrize("n_threads", [1, 2, 5])
def test_every_op_runs_once_and_waits_for_the_one_before(n_threads: int) -> None:
    table, values, _keep = chain(101)
    pool = Pool(n_threads)
    for i in range(1, 6):
        assert pool.walk(table.ctypes.data, len(table))
        # 101 ops: the last writes values[1]; the first of the next walk reads values[0], which is 100 after any walk.
        assert (values[1] == (101 if i == 1 else 100 * i + 1)).all()
        time.sleep(0.004 * (i % 2))  # now and then the workers are asleep
    assert not _keep[2][:, 0].any()  # type: ignore[index]
    pool.close()
    pool.close()
    with pytest.raises(ClosedError):
        pool.walk(table.ctypes.data, len(table))


def test_a_flag_ends_the_walk_and_the_next_one_works() -> None:
    table, values, _keep = chain(40_000)
    flag = aligned_zeros((8,), np.int64)
    pool = Pool(2)
    for _ in range(50):  # on a busy machine the flag may come too early or too late
        values[:2] = flag[0] = 0
        timer = threading.Timer(0.02, lambda: flag.__setitem__(0, 1))
        timer.start()
        whole = pool.walk(table.ctypes.data, len(table), flag.ctypes.data)
        timer.join()
        done = values[:2].max()
        assert whole == (done == 40_000)
        if 0 < done < 40_000:
            break
    else:
        pytest.fail("no walk was cut short")
    flag[0] = 0
    values[:2] = 0
    assert pool.walk(table.ctypes.data, 100, flag.ctypes.data)
    assert (values[0] == 100).all()
    pool.close()


@pytest.mark.parametrize("n_threads", [1, 2, 5])
@pytest.mark.parametrize("seconds", [0.0, 1e-4])
def test_a_walk_in_slices_runs_every_op_once(n_threads: int, seconds: float) -> None:
    table, values, _keep = chain(300)
    flag = aligned_zeros((8,), np.int64)
    pool = Pool(n_threads)
    for pause in (0, 0, 0.001):  # with the last one, workers fall asleep now and then
        values[:2] = at = n_slices = 0
        while at < len(table):
            flag[0] = 0
            done = pool.advance(table.ctypes.data + 32 * at, len(table) - at, flag.ctypes.data, seconds)
            assert done
            at += done
            n_slices += 1
            assert (values[at % 2] == at).all()
            time.sleep(pause * (n_slices % 7 == 0))
        # With several threads, the others may do all while thread 0 waits for a processor.
        assert n_slices > 1 or n_threads > 1 or seconds
    assert not _keep[2][:, 0].any()  # type: ignore[index]
    flag[0] = 0
    assert pool.advance(table.ctypes.data, 100, flag.ctypes.data, 100.0) == 100
    pool.close()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")
def test_a_signal_handler_that_raises_ends_the_walk() -> None:
    table, values, _keep = chain(100_000)
    pool = Pool(2)

    def handler(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, handler)
    try:
        cut = 0
        for _ in range(50):  # on a busy machine the signal may come too late
            values[:2] = 0
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.03)
                pool.walk(table.ctypes.data, len(table))
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                cut += values[:2].max() < len(table)
            if cut == 3:
                break
        assert cut == 3
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    values[:2] = 0
    assert pool.walk(table.ctypes.data, 100)
    assert (values[0] == 100).all()
    pool.close()


def test_idle_workers_take_no_processor_time() -> None:
    table, _values, _keep = chain(10)
    pool = Pool(3)
    pool.walk(table.ctypes.data, len(table))
    used = []
    for _ in range(5):  # of the processor, not of the clock; other threads of this process may use some, too
        time.sleep(0.05)
        before = time.process_time()
        time.sleep(0.2)
        used.append(time.process_time() - before)
    assert min(used) < 0.05
    pool.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_gets_threads_of_its_own() -> None:
    code = """
import os, sys
sys.path.insert(0, {folder!r})
from test_cpu_threads import chain
from pyllm.jit.threads import Pool
table, values, keep = chain(10)
pool = Pool(2)
pool.walk(table.ctypes.data, 10)
pid = os.fork()
values[:2] = 0
assert pool.walk(table.ctypes.data, 10) and (values[0] == 10).all()
if pid:
    assert os.waitpid(pid, 0)[1] == 0
"""
    script = code.format(folder=str(Path(__file__).parent))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "PYTHONWARNINGS": "ignore"}
    subprocess.run(
        [sys.executable, "-c", script], check=True, timeout=300, env=env
    )  # ends by itself: pool never closed


def test_a_pool_that_nobody_holds_ends_its_threads() -> None:
    n = threading.active_count()
    pool = Pool(3)
    assert threading.active_count() == n + 2
    del pool
    assert threading.active_count() == n


def test_single_kernels_run_on_all_threads() -> None:
    table, values, _keep = chain(1)
    pool = Pool(2)
    pool.run(int(table[0, 0]), int(table[0, 1]))
    assert (values[1] == 1).all()
    assert ctypes.c_int64.from_address(int(table[0, 2]) - 8).value == 0
    pool.close()
