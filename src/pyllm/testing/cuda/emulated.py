"""An emulated device: kernels built by g++ with emulator/cuda_emu.h, run in order on host memory.

It is for tests on machines without a card, and for trials of the CUDA backend; it is far slower than the CPU backend.
Memory given to kernels starts as NaN bytes, and writes just outside it are reported when it is released.
"""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm import env
from pyllm.backends.cuda import compiler
from pyllm.backends.cuda.launcher import Defines, Event, Graph, Kernel, Launcher, Request
from pyllm.errors import BackendError, OutOfMemoryError
from pyllm.jit import objects

MEMORY = 8 << 30
"""Bytes of an emulated device; taken from the host's as they are allocated."""
N_SM, MAX_SHARED = 4, 163 << 10
_EMULATOR = Path(__file__).parent / "emulator"
ALIGNMENT, _GUARD, _MARK = 256, 256, 0xA5
_LAUNCH = np.dtype(
    [
        ("grid", np.uint32, 3),
        ("block", np.uint32, 3),
        ("shared", np.uint32),
        ("max_shared", np.uint32),
        ("first", np.uint64),
        ("last", np.uint64),
        ("seed", np.uint64),
    ],
    align=True,
)
_LONGEST = 1800.0
"""Most seconds of compiling a file."""
_MANY_THREADS = 4096
"""Emulated threads from which a launch runs on several host threads."""


class _Library:
    """A kernel file as a shared object. Each running kernel borrows its own copy, since a copy has global state."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._n_copies = 0
        self._idle: list[ctypes.CDLL] = []

    @contextmanager
    def borrow(self) -> Iterator[ctypes.CDLL]:
        with self._lock:
            mine = self._idle.pop() if self._idle else self._copy()
        try:
            yield mine
        finally:
            with self._lock:
                self._idle.append(mine)

    def _copy(self) -> ctypes.CDLL:
        path = self._path
        if self._n_copies:  # a file of its own: otherwise the loader returns the same object
            path = _shared_object(f"{path.stem}-{self._n_copies}{path.suffix}", self._code)
        self._n_copies += 1
        library = ctypes.CDLL(str(path), mode=os.RTLD_LOCAL | os.RTLD_NOW)
        library.emu_error.restype = ctypes.c_char_p
        library.emu_fault.restype = ctypes.c_uint64
        return library

    def _code(self) -> bytes:
        code = objects.read(self._path)
        if code is None:
            raise BackendError(f"{self._path}, which was built for the emulator, is gone")
        return code


@cache
def _library(path: Path) -> _Library:
    return _Library(path)


class _EmulatedEvent(Event):
    def __init__(self) -> None:
        self._at = time.perf_counter()

    def done(self) -> bool:
        return True

    def wait(self) -> None:
        pass

    def seconds_since(self, start: Event) -> float:
        assert isinstance(start, _EmulatedEvent)
        return self._at - start._at


class _EmulatedGraph(Graph):
    def __init__(self, enqueue: Callable[[Callable[[], object]], None]) -> None:
        self._enqueue = enqueue
        self.steps: list[Callable[[], object]] = []

    def launch(self) -> None:
        for step in self.steps:
            self._enqueue(step)


class EmulatedLauncher(Launcher):
    """One emulated device of 4 multiprocessors, with the abilities of sm_80."""

    def __init__(self, index: int = 0, memory: int = MEMORY) -> None:
        compiler_path()
        self.index, self.name, self.arch = index, f"emulated device {index}", "sm_80"
        self.n_sm, self.max_shared = N_SM, MAX_SHARED
        self._total = memory
        self._blocks: dict[int, tuple[int, NDArray[np.uint8]]] = {}  # by address: bytes, memory with its guards
        self._graph: _EmulatedGraph | None = None
        self._n_threads = min(2, os.cpu_count() or 1)
        self._pool: ThreadPoolExecutor | None = None
        self._closed = False

    def memory(self) -> tuple[int, int]:
        return self._total - sum(n for n, _ in self._blocks.values()), self._total

    def allocate(self, n_bytes: int) -> int:
        free = self.memory()[0]
        if n_bytes > free:
            raise OutOfMemoryError(f"{n_bytes:,} bytes were wanted of {self.name}, where {free:,} bytes are free")
        memory, start = self._room(n_bytes)
        memory[:start] = memory[start + n_bytes :] = _MARK
        memory[start : start + n_bytes] = 0xFF
        self._blocks[memory.ctypes.data + start] = n_bytes, memory
        return int(memory.ctypes.data + start)

    def _room(self, n_bytes: int) -> tuple[NDArray[np.uint8], int]:
        """Memory for this many bytes at an aligned address, and the address."""
        size = -(-n_bytes // ALIGNMENT) * ALIGNMENT
        memory = np.empty(size + 2 * _GUARD + ALIGNMENT, np.uint8)
        return memory, _GUARD + -(memory.ctypes.data + _GUARD) % ALIGNMENT

    def release(self, address: int) -> None:
        if address not in self._blocks:
            return
        n_bytes, memory = self._blocks.pop(address)
        start = address - memory.ctypes.data
        if (memory[:start] != _MARK).any() or (memory[start + n_bytes :] != _MARK).any():
            raise BackendError(f"a kernel wrote outside {n_bytes:,} bytes of memory that it was given")

    def _check(self, address: int, n_bytes: int) -> None:
        """Raise BackendError unless the whole range was allocated here."""
        inside = any(a <= address and address + n_bytes <= a + n for a, (n, _) in self._blocks.items())
        if n_bytes and not inside and not self._closed:
            raise BackendError(f"{n_bytes:,} bytes at {address:#x} are not within memory of {self.name}")

    def pinned(self, n_bytes: int) -> NDArray[np.uint8]:
        return np.zeros(n_bytes, np.uint8)

    def upload(self, address: int, array: NDArray[Any], wait: bool = False) -> None:
        source, n = _contiguous(array)
        self._check(address, n)
        self._enqueue(lambda: ctypes.memmove(address, source.ctypes.data, n))
        if wait:
            self.synchronize()

    def download(self, array: NDArray[Any], address: int, wait: bool = False) -> None:
        to, n = _contiguous(array)
        self._check(address, n)
        self._enqueue(lambda: ctypes.memmove(to.ctypes.data, address, n))
        if wait:
            self.synchronize()

    def copy(self, to: int, source: int, n_bytes: int) -> None:
        self.copy_peer(to, self, source, n_bytes)

    def copy_peer(self, to: int, source_launcher: Launcher, source: int, n_bytes: int) -> None:
        assert isinstance(source_launcher, EmulatedLauncher)
        other = source_launcher

        def copy() -> None:
            self._check(to, n_bytes)
            other._check(source, n_bytes)
            ctypes.memmove(to, source, n_bytes)

        self._enqueue(copy)

    def zero(self, address: int, n_bytes: int) -> None:
        self._check(address, n_bytes)
        self._enqueue(lambda: ctypes.memset(address, 0, n_bytes))

    def prepare(self, requests: Sequence[Request], progress: Callable[[float], None] | None = None) -> None:
        compiler.side_by_side(lambda r: build(r[0], r[1]), requests, progress)

    def kernels(self, source: str, defines: Defines, names: Sequence[str]) -> list[Kernel]:
        library = _library(build(source, defines))
        with library.borrow() as copy:
            for name in names:
                if not hasattr(copy, f"emu_{name}"):
                    raise BackendError(f"{source} has no kernel {name}")
        return [Kernel(name, source, library) for name in names]

    def launch(
        self,
        kernel: Kernel,
        grid: tuple[int, int, int],
        block: int,
        args: NDArray[np.void],
        shared: int = 0,
    ) -> None:
        with kernel.handle.borrow() as copy:
            size = ctypes.c_int.in_dll(copy, f"emu_size_{kernel.name}").value
        if size != args.nbytes:
            raise BackendError(f"{kernel.name} of {kernel.source} takes {size} bytes of arguments, not {args.nbytes}")
        if block < 1 or min(grid) < 1:
            raise BackendError(f"{kernel.name} of {kernel.source} cannot have a grid {grid} of {block} threads")
        mine = args.copy()
        self._enqueue(lambda: self._run(kernel, grid, block, mine, shared))

    @contextmanager
    def capture(self) -> Iterator[Graph]:
        self._graph = graph = _EmulatedGraph(self._enqueue)
        try:
            yield graph
        finally:
            self._graph = None

    def record(self, timing: bool = False) -> Event:
        return _EmulatedEvent()

    def stream_wait(self, event: Event) -> None:
        event.wait()

    def synchronize(self) -> None:
        pass

    def close(self) -> None:
        self._closed = True
        self._blocks.clear()
        if self._pool:
            self._pool.shutdown()
            self._pool = None

    def _enqueue(self, step: Callable[[], object]) -> None:
        if self._closed:
            raise BackendError(f"{self.name} was closed")
        if self._graph is not None:
            self._graph.steps.append(step)
        else:
            step()

    def _run(self, kernel: Kernel, grid: tuple[int, int, int], block: int, args: NDArray[np.void], shared: int) -> None:
        n_blocks, seed = grid[0] * grid[1] * grid[2], self._seed()
        n = min(self._n_threads if n_blocks * block >= _MANY_THREADS else 1, n_blocks)

        def part(i: int) -> str | None:
            launch = np.zeros((), _LAUNCH)
            launch["grid"], launch["block"] = grid, (block, 1, 1)
            launch["shared"], launch["max_shared"] = shared, self.max_shared
            launch["first"], launch["last"] = n_blocks * i // n, n_blocks * (i + 1) // n
            launch["seed"] = seed
            with kernel.handle.borrow() as library:
                entry = getattr(library, f"emu_{kernel.name}")
                if not entry(ctypes.c_void_p(launch.ctypes.data), ctypes.c_void_p(args.ctypes.data)):
                    return None
                error = str(library.emu_error().decode(errors="replace"))
                return error + self._beside(library.emu_fault())

        if n == 1:
            errors = [part(0)]
        else:
            self._pool = self._pool or ThreadPoolExecutor(self._n_threads)
            errors = list(self._pool.map(part, range(n)))
        for error in filter(None, errors):
            raise BackendError(f"{kernel.source}: {error}")

    def _seed(self) -> int:
        """Seed of the order of a kernel's threads and blocks; 0: in sequence."""
        return 0

    def _beside(self, fault: int) -> str:
        """Description of an address that a kernel must not use."""
        distances = [(fault - a - n if fault >= a + n else fault - a, n) for a, (n, _) in self._blocks.items()]
        if not fault or not distances:
            return ""
        distance, n = min(distances, key=lambda d: abs(d[0]))
        return f": {abs(distance):,} bytes {'behind' if distance >= 0 else 'before'} memory of {n:,} bytes"


def open_emulated(index: int = 0, memory: int = MEMORY) -> EmulatedLauncher:
    """An emulated device, stressed where the environment says so (`PYLLM_CUDA_EMULATOR_STRESS`)."""
    if seed := env.cuda_emulator_stress():
        from pyllm.testing.cuda.stressed import StressedLauncher

        return StressedLauncher(index, memory, seed)
    return EmulatedLauncher(index, memory)


def build(name: str, defines: Defines) -> Path:
    """The shared object of a kernel file, built at first use. Raises BackendError with the compiler's output."""
    source, program = compiler.source(name), compiler_path()
    native = "-march=native" if platform.machine().lower() in ("x86_64", "amd64") else "-mcpu=native"
    # kernels are many and short: optimizing them takes longer than it saves
    options = ["-std=c++17", "-O1", native, "-fno-strict-aliasing", "-fPIC", "-shared", "-Wno-unknown-pragmas"]
    options += ["-DEMULATED", *compiler.options_of(defines)]
    digest = source.digest(options, program, _processor(), _emulator_text())

    def make() -> bytes:
        return _compiled(name, defines, [program, *options])

    return _shared_object(f"{Path(name).stem}-{digest}.so", make)


def _compiled(name: str, defines: Defines, command: Sequence[str]) -> bytes:
    """The content of a shared object. Raises BackendError with the compiler's output."""
    try:
        with tempfile.TemporaryDirectory(prefix="pyllm-") as folder:
            out = Path(folder, "kernels.so")
            files = [f"-I{compiler.KERNELS}", f"-I{_EMULATOR}", "-x", "c++", str(compiler.KERNELS / name)]
            done = subprocess.run(
                [*command, *files, "-o", str(out), "-lm"], cwd=folder, env=env.for_child(), stdin=subprocess.DEVNULL,
                capture_output=True, text=True, errors="replace", timeout=_LONGEST, check=False,
            )  # fmt: skip
            if not done.returncode:
                return out.read_bytes()
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BackendError(f"{name} could not be compiled for the emulator: {error}") from error
    raise BackendError(f"{name} with {dict(defines)} does not compile for the emulator:\n{done.stderr[:4000]}")


def _shared_object(name: str, make: Callable[[], bytes]) -> Path:
    """A loadable file of the kernel cache, built unless it is there. Raises BackendError."""
    path = objects.path(compiler.cache_folder(), name) or objects.keep(compiler.cache_folder(), name, make())
    if path is None:
        raise BackendError("emulating CUDA takes a folder for built kernels; set PYLLM_KERNEL_CACHE to one")
    return path


@cache
def compiler_path() -> str:
    """The C++ compiler. Raises BackendError where there is none."""
    if path := env.find_program("g++", "c++", "clang++"):
        return path
    raise BackendError("emulating CUDA takes a C++ compiler, and none is installed: g++, or clang++")


@cache
def _emulator_text() -> str:
    return "\n".join(p.read_text(encoding="utf-8") for p in sorted(_EMULATOR.glob("*.h")))


@cache
def _processor() -> str:
    """The processor's identity, on which -march=native depends."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    return platform.machine() + next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _contiguous(array: NDArray[Any]) -> tuple[NDArray[Any], int]:
    if not array.flags.c_contiguous:
        raise ValueError("only contiguous arrays are copied")
    return array, array.nbytes
