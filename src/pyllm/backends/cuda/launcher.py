"""The contract of a device: memory, copies, kernels, events, graphs. A `Launcher` is a device and a stream on it.

There are two implementations: `card.CudaLauncher` drives a card through cupy, and
`pyllm.testing.cuda.EmulatedLauncher` runs the same kernels on the processor, built by g++. `open_launcher(index)` gives
the one that fits the environment (`PYLLM_CUDA_EMULATOR`).

Manual
    launcher = open_launcher(0)
    (kernel,) = launcher.kernels("norm.cu", {"WIDTH": 64}, ["norm_rows"])     # files of kernels/, compiled at first use
    x = launcher.allocate(n_bytes)                                           # a device address: an int
    launcher.upload(x, array)                                                # enqueued; `wait=True`: done on return
    launcher.launch(kernel, (n_blocks, 1, 1), 128, args, shared=0)           # args: `launch.fill(layout, …)`
    launcher.download(array, x); launcher.record().wait()
    with launcher.capture() as graph: …                                      # launches, copies, zeros: recorded only
    graph.launch()

What is enqueued runs in order. An array that is uploaded or downloaded without waiting must stay as it is until an
event recorded afterwards is done; `pinned` memory is copied without a detour, and memory of other kinds may make the
call wait. Errors of the device are BackendError, OutOfMemoryError where memory is what lacks; after a device is lost
every call raises the same error, but `close` and `release` do not. A launcher is not thread-safe.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.records import dataclass

Defines = Mapping[str, int | str]
Request = tuple[str, Defines, Sequence[str]]
"""A file of kernels/, its defines, and names of kernels in it."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A compiled kernel; valid for the launcher that made it."""

    name: str
    source: str
    handle: Any


class Event(ABC):
    """A point in a device's stream."""

    @abstractmethod
    def done(self) -> bool:
        """Whether everything before it is done. Raises BackendError where the device failed."""

    @abstractmethod
    def wait(self) -> None:
        """Block until it is done; other threads run meanwhile. Raises BackendError where the device failed."""

    @abstractmethod
    def seconds_since(self, start: Event) -> float:
        """Time on the device from `start` to here; both were recorded with `timing`, and are done."""


class Graph(ABC):
    """Work captured by `Launcher.capture`; its memory must stay in place."""

    @abstractmethod
    def launch(self) -> None:
        """Enqueue all of it."""


class Launcher(ABC):
    """A device with a stream of work."""

    index: int
    name: str
    """The card, in words."""
    arch: str
    """E.g. "sm_90"."""
    n_sm: int
    """Multiprocessors."""
    max_shared: int
    """Most bytes of shared memory that a block can have, static and dynamic."""

    @abstractmethod
    def memory(self) -> tuple[int, int]:
        """Bytes that are free, bytes that the device has."""

    @abstractmethod
    def allocate(self, n_bytes: int) -> int:
        """Address of memory with any contents, a multiple of 256. Raises OutOfMemoryError."""

    @abstractmethod
    def release(self, address: int) -> None:
        """Free memory after the enqueued work. Does nothing for 0 or after `close`."""

    @abstractmethod
    def pinned(self, n_bytes: int) -> NDArray[np.uint8]:
        """Host memory that copies read and write directly; it lasts until `close`."""

    @abstractmethod
    def upload(self, address: int, array: NDArray[Any], wait: bool = False) -> None:
        """Enqueue a copy of a contiguous array to the device."""

    @abstractmethod
    def download(self, array: NDArray[Any], address: int, wait: bool = False) -> None:
        """Enqueue a copy from the device into a contiguous array."""

    @abstractmethod
    def copy(self, to: int, source: int, n_bytes: int) -> None:
        """Enqueue a copy within the device."""

    @abstractmethod
    def copy_peer(self, to: int, source_launcher: Launcher, source: int, n_bytes: int) -> None:
        """Enqueue, on this device, a copy from another one's memory; call `stream_wait` for the other's event first."""

    @abstractmethod
    def zero(self, address: int, n_bytes: int) -> None:
        """Enqueue filling with zeros."""

    @abstractmethod
    def prepare(self, requests: Sequence[Request], progress: Callable[[float], None] | None = None) -> None:
        """Compile kernels ahead, in parallel; `progress` receives the share done.

        Raises BackendError with the compiler's output.
        """

    @abstractmethod
    def kernels(self, source: str, defines: Defines, names: Sequence[str]) -> list[Kernel]:
        """Kernels of a file in kernels/, compiled with these defines if needed. Raises BackendError."""

    @abstractmethod
    def launch(
        self,
        kernel: Kernel,
        grid: tuple[int, int, int],
        block: int,
        args: NDArray[np.void],
        shared: int = 0,
    ) -> None:
        """Enqueue a kernel. `args` is a 0-d array laid out as the kernel's Args; it is copied."""

    @abstractmethod
    def capture(self) -> AbstractContextManager[Graph]:
        """A context in which enqueued work is captured into the graph and not run."""

    @abstractmethod
    def record(self, timing: bool = False) -> Event:
        """Record an event after all enqueued work."""

    @abstractmethod
    def stream_wait(self, event: Event) -> None:
        """Let work enqueued from now on wait for an event, of this device or another."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until all enqueued work is done."""

    @abstractmethod
    def close(self) -> None:
        """Wait for the device and free all memory. Further calls do nothing; never raises."""


def open_launcher(index: int = 0) -> Launcher:
    """Open the device of this index: emulated where the environment asks for it, else a card.

    Raises BackendError with the reason and what would work.
    """
    from pyllm.backends.cuda import device

    if emulated := device.emulator():
        return emulated.open(index)
    from pyllm.backends.cuda.card import CudaLauncher

    return CudaLauncher(index)
