"""Worker processes that compile kernels: started when kernels are missing, kept some seconds for the next ones.

The second kernel of a worker compiles faster, since numba is loaded and has its types. The program itself imports numba
only where no process can be started (a frozen or embedded Python, or the limit of processes).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import IO, Any

from pyllm import env
from pyllm.errors import BackendError

_KEPT = 5.0
"""Seconds that an idle worker is kept."""
_LONGEST = 1800.0
"""Seconds without any finished job after which compiling is given up."""

_LENGTH = 8
"""Bytes of a result's length."""

Job = dict[str, Any]
"""What `pyllm.jit.compiler.compile_job` takes, in JSON's types."""


class Worker:
    """A process that compiles kernels one at a time. Not thread-safe."""

    def __init__(self, python: list[str]) -> None:
        """`python`: what `env.python` gives. Raises OSError where no process can be started."""
        self.path = env.search_path()
        self._used = time.monotonic()
        self._errors = _error_file()
        code = f"import sys; sys.path[:] = {self.path!a}; from pyllm.jit.workers import serve; serve()"
        # Elsewhere than in the current folder, where numba would look for settings.
        self._process = subprocess.Popen(
            [*python, "-c", code], cwd=os.path.dirname(python[0]), env=env.for_child(),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors or subprocess.DEVNULL,
        )  # fmt: skip

    @property
    def fresh(self) -> bool:
        """Whether it still takes jobs, for this program's search path."""
        alive = self._process.poll() is None
        return alive and self.path == env.search_path() and time.monotonic() - self._used < _KEPT

    def do(self, job: Job) -> bytes:
        """Run a job and return its result. Raises BackendError with the worker's standard error where it ends early."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(OSError, ValueError):  # it has ended, or is being closed: then it says nothing, either
            self._process.stdin.write(json.dumps(job).encode() + b"\n")
            self._process.stdin.flush()
            length = int.from_bytes(self._process.stdout.read(_LENGTH), "little")
            code = self._process.stdout.read(length)
            if length and len(code) == length:
                self._used = time.monotonic()
                return code
        status = self._process.wait()
        text = ""
        if self._errors is not None:
            self._errors.seek(0)
            text = self._errors.read().decode(errors="replace").strip()
        raise BackendError(f"compiling a kernel failed: {text[-2000:] or f'exit status {status}'}")

    def close(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._errors):
            if file is not None:
                with suppress(OSError):
                    file.close()


def _error_file() -> IO[bytes] | None:
    try:
        return tempfile.TemporaryFile()
    except OSError:  # nowhere to write; then there are no details of errors
        return None


_idle: list[Worker] = []
_lock = threading.Lock()


def _n_processors() -> int:
    n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(n, 8))


_turns = threading.BoundedSemaphore(_n_processors())
"""Limits jobs over all calls of `run`: a second call finds the kernels that the first has compiled."""


Watch = Callable[[], None]
Ready = Callable[[int], bool]
Done = Callable[[int, bytes], None]


def run(jobs: Sequence[Job], n_workers: int | None, watch: Watch, ready: Ready, done: Done) -> None:
    """Run all jobs, on as many processes as there are processors; this thread calls `watch` meanwhile.

    `ready` and `done` are called by any thread, with a job's index: `ready` before a job begins (True: skip it),
    `done` with its result. Raises BackendError for the first failed job, or when no job ends for half an hour; passes
    on exceptions of `watch`. No job is running then.
    """
    workers = _take(min(len(jobs), n_workers or _n_processors()))
    if not workers:
        _run_here(jobs, watch, ready, done)
        return
    left = list(reversed(range(len(jobs))))
    ended = [time.monotonic()]

    def work(worker: Worker) -> None:
        while True:
            try:
                i = left.pop()
            except IndexError:
                return
            with _turns:
                if not ready(i):
                    done(i, worker.do(jobs[i]))
            ended.append(time.monotonic())

    pool = ThreadPoolExecutor(len(workers))
    futures: list[Future[None]] = [pool.submit(work, worker) for worker in workers]
    all_done = False
    try:
        while not all(future.done() for future in futures) and not any(f.done() and f.exception() for f in futures):
            watch()
            time.sleep(0.02)
            if time.monotonic() - ended[-1] > _LONGEST:
                raise BackendError(
                    "compiling kernels was given up: "
                    f"none was ready within {_LONGEST / 60:.0f} minutes; free some memory or processors and start again"
                )
        for future in futures:
            if future.done():
                future.result()
        all_done = True
    finally:
        left.clear()
        if not all_done:
            for worker in workers:
                worker.close()
        pool.shutdown()
        if all_done:
            with _lock:
                _idle.extend(workers)
            later = threading.Timer(_KEPT, _end_unused)
            later.daemon = True
            later.start()


def _run_here(jobs: Sequence[Job], watch: Watch, ready: Ready, done: Done) -> None:
    """Run all jobs in this process: slower, and numba stays loaded."""
    from pyllm.jit.compiler import compile_job

    for i, job in enumerate(jobs):
        watch()
        if ready(i):
            continue
        try:
            code = compile_job(job)
        except Exception as error:  # what numba raises has many names
            raise BackendError(f"compiling a kernel failed: {type(error).__name__}: {error}") from error
        done(i, code)


def _take(n: int) -> list[Worker]:
    """Up to `n` workers, idle ones first; fewer, or none, where no more can be started."""
    _end_unused()
    with _lock:
        taken, _idle[:] = _idle[:n], _idle[n:]
    python = env.python()
    with suppress(OSError):
        while python is not None and len(taken) < n:
            taken.append(Worker(python))
    return taken


def _end_unused() -> None:
    """Close workers that were idle too long."""
    with _lock:
        for worker in [worker for worker in _idle if not worker.fresh]:
            _idle.remove(worker)
            worker.close()


def serve() -> None:
    """Main loop of a worker: jobs from standard input; each result's length and bytes to standard output."""
    from pyllm.jit.compiler import compile_job

    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # numba and LLVM may print
    for line in sys.stdin.buffer:
        code = compile_job(json.loads(line))
        answers.write(len(code).to_bytes(_LENGTH, "little") + code)
        answers.flush()
