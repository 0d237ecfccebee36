"""Processes that compile kernels: started when kernels are missing, kept for the next ones some seconds.

A process that has compiled one kernel compiles the next sooner, because numba is loaded and has its types. The program
itself never imports numba.
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
from typing import Any

from pyllm import env
from pyllm.errors import BackendError

_KEPT = 5.0
"""Seconds that a worker is kept without a job."""

Job = dict[str, Any]
"""What `pyllm.jit.compiler.compile_job` takes, in JSON's types."""


class Worker:
    """A process that compiles one kernel after the other. Used by one thread at a time."""

    def __init__(self) -> None:
        self.path = _search_path()
        self._used = time.monotonic()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from pyllm.jit.workers import serve; serve()"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env=env.for_child(PYTHONPATH=self.path),
        )  # fmt: skip

    @property
    def fresh(self) -> bool:
        """Whether it still takes jobs, for this program's search path."""
        alive = self._process.poll() is None
        return alive and self.path == _search_path() and time.monotonic() - self._used < _KEPT

    def do(self, job: Job) -> None:
        """Wait until a job is done. Raises BackendError with the worker's last words where it is not."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(OSError, ValueError):  # it has ended, or is being closed: then it says nothing, either
            self._process.stdin.write(json.dumps(job).encode() + b"\n")
            self._process.stdin.flush()
            if self._process.stdout.readline() == b"done\n":
                self._used = time.monotonic()
                return
        status = self._process.wait()
        self._errors.seek(0)
        text = self._errors.read().decode(errors="replace").strip()
        raise BackendError(f"compiling a kernel failed: {text[-2000:] or f'exit status {status}'}")

    def close(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._errors):
            if file is not None:
                with suppress(OSError):
                    file.close()


_idle: list[Worker] = []
_lock = threading.Lock()


def run(jobs: Sequence[Job], n_workers: int | None, watch: Callable[[], None]) -> None:
    """Do all jobs, on as many processes as there are processors; `watch` is called meanwhile.

    Raises BackendError, for the first job that failed, and what `watch` raises; no job is under way then.
    """
    n = min(len(jobs), n_workers or _n_processors())
    workers = _take(n)
    left, done = list(reversed(jobs)), False

    def work(worker: Worker) -> None:
        while True:
            try:
                job = left.pop()
            except IndexError:
                return
            worker.do(job)

    pool = ThreadPoolExecutor(n)
    futures: list[Future[None]] = [pool.submit(work, worker) for worker in workers]
    try:
        while not all(future.done() for future in futures) and not any(f.done() and f.exception() for f in futures):
            watch()
            time.sleep(0.02)
        for future in futures:
            if future.done():
                future.result()
        done = True
    finally:
        left.clear()
        if not done:
            for worker in workers:
                worker.close()
        pool.shutdown()
        if done:
            with _lock:
                _idle.extend(workers)
            later = threading.Timer(_KEPT, _end_unused)
            later.daemon = True
            later.start()


def _take(n: int) -> list[Worker]:
    """Workers that nobody else uses: kept ones first."""
    _end_unused()
    with _lock:
        taken, _idle[:] = _idle[:n], _idle[n:]
    while len(taken) < n:
        taken.append(Worker())
    return taken


def _end_unused() -> None:
    """Close workers that had nothing to do for a while."""
    with _lock:
        for worker in [worker for worker in _idle if not worker.fresh]:
            _idle.remove(worker)
            worker.close()


def _n_processors() -> int:
    n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(n, 8))


def _search_path() -> str:
    return os.pathsep.join(p for p in sys.path if p)


def serve() -> None:
    """A worker's life: jobs from standard input, a line for each that is done. It ends with its input."""
    from pyllm.jit.compiler import compile_job

    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        compile_job(json.loads(line))
        answers.write("done\n")
        answers.flush()
