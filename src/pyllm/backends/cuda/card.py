"""A card, driven through cupy's bindings of CUDA's runtime and driver. cupy is imported when a card is opened.

Memory comes from cudaMalloc directly, so that freed memory is available to other processes at once. Every call first
makes its card the current one: the current card belongs to the calling thread, and other libraries change it.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from pyllm.backends.cuda import compiler, driver, failures
from pyllm.backends.cuda.launcher import Defines, Event, Graph, Kernel, Launcher, Request
from pyllm.errors import BackendError, OutOfMemoryError

_MAX_DYNAMIC_SHARED, _STATIC_SHARED = 8, 1
"""CUfunction_attribute."""
_N_SM, _SHARED_OPT_IN, _CC_MAJOR, _CC_MINOR = 16, 97, 75, 76
"""cudaDeviceAttr."""
_NO_TIMING, _NON_BLOCKING, _RELAXED = 2, 1, 2
"""Flags of events, of streams; how capturing treats the thread's other calls: lets memory be given back meanwhile."""
_TO_DEVICE, _TO_HOST, _WITHIN = 1, 2, 3
_DEFAULT_SHARED = 48 << 10
"""Bytes of dynamic shared memory that a kernel may have without asking."""
_lost: dict[int, str] = {}
"""By card: the error after which this process cannot use it. CUDA has no way back."""


class Cuda:
    """cupy's bindings, with pyllm's errors."""

    def __init__(self) -> None:
        """Raises BackendError where cupy, or what it needs, is missing or does not fit the driver."""
        driver.check_cupy()
        try:
            from cupy.cuda import driver as cu
            from cupy.cuda import nvrtc, runtime

            cuda = int(runtime.runtimeGetVersion()) // 1000
        except Exception as error:
            raise failures.missing_library(error) or BackendError(f"cupy cannot be imported: {error}") from error
        self.runtime, self.driver = runtime, cu
        self.nvrtc = compiler.Nvrtc(nvrtc, cuda)

    def n_devices(self) -> int:
        """Raises BackendError where there is no driver, or it is too old."""
        try:
            return int(self.runtime.getDeviceCount())
        except Exception as error:
            raise self.explain(error, "CUDA") from error

    def explain(self, error: Exception, device: str) -> BackendError:
        """The pyllm error for one of cupy's."""
        if isinstance(error, BackendError):
            return error
        if missing := failures.missing_library(error):
            return missing
        versions = 0, 0
        with suppress(Exception):
            versions = int(self.runtime.driverGetVersion()), int(self.runtime.runtimeGetVersion())
        return failures.explain(failures.code_of(error), str(error), device, versions)


@cache
def _cuda() -> Cuda:
    return Cuda()


class _CudaEvent(Event):
    def __init__(self, launcher: CudaLauncher, timing: bool) -> None:
        self._launcher, self._runtime = launcher, launcher.cuda.runtime
        self.handle = launcher.call(self._runtime.eventCreateWithFlags, 0 if timing else _NO_TIMING)
        self._finalizer = _at_end(self, self._runtime.eventDestroy, self.handle)

    def done(self) -> bool:
        status = self._launcher.call(self._runtime.eventQuery, self.handle)
        if status not in (0, failures.NOT_READY):
            self._launcher.fail(status)
        return bool(status == 0)

    def wait(self) -> None:
        self._launcher.call(self._runtime.eventSynchronize, self.handle)

    def seconds_since(self, start: Event) -> float:
        assert isinstance(start, _CudaEvent)
        return float(self._launcher.call(self._runtime.eventElapsedTime, start.handle, self.handle)) / 1000


class _CudaGraph(Graph):
    def __init__(self, launcher: CudaLauncher) -> None:
        self._launcher, self._runtime = launcher, launcher.cuda.runtime
        self._handle = 0

    def make(self, graph: int) -> None:
        """Instantiate a captured graph."""
        try:
            self._handle = self._launcher.call(self._runtime.graphInstantiate, graph)
        finally:
            with suppress(Exception):
                self._runtime.graphDestroy(graph)
        self._finalizer = _at_end(self, self._runtime.graphExecDestroy, self._handle)

    def launch(self) -> None:
        self._launcher.call(self._runtime.graphLaunch, self._handle, self._launcher.stream)


class CudaLauncher(Launcher):
    """A card and a stream on it."""

    def __init__(self, index: int = 0) -> None:
        """Raises BackendError where there is no such card, it is too old, or the process has lost it."""
        self.index, self.name, self.stream = index, f"cuda{index}", 0
        self._closed, self._capturing = False, False
        self._memory: set[int] = set()
        self._modules: dict[tuple[object, ...], int] = {}
        self._peers: set[int] = set()
        self.cuda = _cuda()
        n = self.cuda.n_devices()
        if not 0 <= index < n:
            raise BackendError(f"there is no card cuda{index}; there are {n}, counted from 0")
        runtime = self.cuda.runtime
        name = self.call(runtime.getDeviceProperties, index)["name"]
        self.name = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
        capability = self._attribute(_CC_MAJOR), self._attribute(_CC_MINOR)
        if capability < driver.OLDEST_CAPABILITY:
            raise BackendError(
                f"{self.name} has compute capability {capability[0]}.{capability[1]}; 7.5 or newer is needed"
            )
        self.arch = self.cuda.nvrtc.arch(capability)
        self.n_sm, self.max_shared = self._attribute(_N_SM), self._attribute(_SHARED_OPT_IN)
        self.stream = self.call(runtime.streamCreateWithFlags, _NON_BLOCKING)

    def _attribute(self, number: int) -> int:
        return int(self.call(self.cuda.runtime.deviceGetAttribute, number, self.index))

    # --- errors

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """A call of cupy's bindings on this card. Raises BackendError, OutOfMemoryError."""
        if self._closed:
            raise BackendError(f"{self.name} was closed")
        if self.index in _lost:
            raise BackendError(_lost[self.index])
        try:
            self.cuda.runtime.setDevice(self.index)
            return function(*args)
        except Exception as error:
            self._raise(self.cuda.explain(error, self.name), failures.code_of(error), error)

    def fail(self, code: int) -> NoReturn:
        """Raise the error for a code that a call returned."""
        self._raise(failures.explain(code, f"CUDA error {code}", self.name), code, None)

    def _raise(self, explained: BackendError, code: int, cause: Exception | None) -> NoReturn:
        if failures.is_lost(code):
            _lost[self.index] = str(explained)
        raise explained from cause

    # --- memory

    def memory(self) -> tuple[int, int]:
        free, total = self.call(self.cuda.runtime.memGetInfo)
        return int(free), int(total)

    def allocate(self, n_bytes: int) -> int:
        try:
            address = int(self.call(self.cuda.runtime.malloc, max(1, n_bytes)))
        except OutOfMemoryError as error:
            free, total = self.memory()
            raise OutOfMemoryError(
                f"{n_bytes:,} bytes were wanted of {self.name}, where {free:,} of {total:,} bytes are free"
            ) from error
        self._memory.add(address)
        return address

    def release(self, address: int) -> None:
        if address in self._memory:
            self._memory.remove(address)
            with suppress(BackendError):
                self.synchronize()
            with suppress(BackendError):
                self.call(self.cuda.runtime.free, address)

    def pinned(self, n_bytes: int) -> NDArray[np.uint8]:
        try:
            address = int(self.call(self.cuda.runtime.hostAlloc, max(1, n_bytes), 0))
        except OutOfMemoryError as error:  # whose message would be about the card's memory
            raise OutOfMemoryError(f"the system has no {n_bytes:,} bytes of memory that may be locked") from error
        memory = (ctypes.c_uint8 * n_bytes).from_address(address)
        _at_end(memory, self.cuda.runtime.freeHost, address)  # arrays may outlive the launcher
        array = np.ctypeslib.as_array(memory)
        array[:] = 0
        return array

    def upload(self, address: int, array: NDArray[Any], wait: bool = False) -> None:
        self._copy(address, array.ctypes.data, _contiguous(array), _TO_DEVICE, wait)

    def download(self, array: NDArray[Any], address: int, wait: bool = False) -> None:
        self._copy(array.ctypes.data, address, _contiguous(array), _TO_HOST, wait)

    def copy(self, to: int, source: int, n_bytes: int) -> None:
        self._copy(to, source, n_bytes, _WITHIN, False)

    def _copy(self, to: int, source: int, n_bytes: int, kind: int, wait: bool) -> None:
        if n_bytes:
            self.call(self.cuda.runtime.memcpyAsync, to, source, n_bytes, kind, self.stream)
        if wait:
            self.synchronize()

    def copy_peer(self, to: int, source_launcher: Launcher, source: int, n_bytes: int) -> None:
        if source_launcher.index == self.index:
            return self.copy(to, source, n_bytes)
        self._open_way(source_launcher.index)
        runtime = self.cuda.runtime
        self.call(runtime.memcpyPeerAsync, to, self.index, source, source_launcher.index, n_bytes, self.stream)
        return None

    def _open_way(self, peer: int) -> None:
        """Let this card read the other's memory, if possible; otherwise copies go through the host."""
        if peer in self._peers:
            return
        self._peers.add(peer)
        if self.call(self.cuda.runtime.deviceCanAccessPeer, self.index, peer):
            with suppress(BackendError):  # another launcher may have done so
                self.call(self.cuda.runtime.deviceEnablePeerAccess, peer)

    def zero(self, address: int, n_bytes: int) -> None:
        if n_bytes:
            self.call(self.cuda.runtime.memsetAsync, address, 0, n_bytes, self.stream)

    # --- kernels

    def prepare(self, requests: Sequence[Request], progress: Callable[[float], None] | None = None) -> None:
        compiler.side_by_side(lambda r: self.cuda.nvrtc.cubin(r[0], r[1], self.arch), requests, progress)

    def kernels(self, source: str, defines: Defines, names: Sequence[str]) -> list[Kernel]:
        key = source, tuple(sorted(defines.items()))
        if key not in self._modules:
            cubin = self.cuda.nvrtc.cubin(source, defines, self.arch)
            self._modules[key] = int(self.call(self.cuda.driver.moduleLoadData, cubin))
        return [self._kernel(self._modules[key], source, name) for name in names]

    def _kernel(self, module: int, source: str, name: str) -> Kernel:
        """A kernel, allowed to use all of the shared memory."""
        cu = self.cuda.driver
        function = int(self.call(cu.moduleGetFunction, module, name))
        static = int(self.call(cu.funcGetAttribute, _STATIC_SHARED, function))
        self.call(cu.funcSetAttribute, function, _MAX_DYNAMIC_SHARED, max(0, self.max_shared - static))
        return Kernel(name, source, function)

    def launch(
        self,
        kernel: Kernel,
        grid: tuple[int, int, int],
        block: int,
        args: NDArray[np.void],
        shared: int = 0,
    ) -> None:
        struct = ctypes.c_void_p(args.ctypes.data)  # a kernel takes one parameter: its Args
        self.call(
            self.cuda.driver.launchKernel,
            *(kernel.handle, *grid, block, 1, 1, shared, self.stream, ctypes.addressof(struct), 0),
        )

    @contextmanager
    def capture(self) -> Iterator[Graph]:
        runtime, graph = self.cuda.runtime, _CudaGraph(self)
        self.call(runtime.streamBeginCapture, self.stream, _RELAXED)
        try:
            yield graph
        except BaseException:
            with suppress(Exception):  # the captured graph is dropped; the first error is the one to report
                runtime.graphDestroy(runtime.streamEndCapture(self.stream))
            raise
        graph.make(self.call(runtime.streamEndCapture, self.stream))

    def record(self, timing: bool = False) -> Event:
        event = _CudaEvent(self, timing)
        self.call(self.cuda.runtime.eventRecord, event.handle, self.stream)
        return event

    def stream_wait(self, event: Event) -> None:
        assert isinstance(event, _CudaEvent)
        self.call(self.cuda.runtime.streamWaitEvent, self.stream, event.handle)

    def synchronize(self) -> None:
        self.call(self.cuda.runtime.streamSynchronize, self.stream)

    def close(self) -> None:
        if self._closed:
            return
        runtime = self.cuda.runtime
        steps: list[tuple[Callable[..., Any], int]] = [(runtime.setDevice, self.index)]
        steps += [(runtime.streamSynchronize, self.stream)]
        steps += [(self.cuda.driver.moduleUnload, module) for module in self._modules.values()]
        steps += [(runtime.free, address) for address in self._memory]
        steps += [(runtime.streamDestroy, self.stream)]
        for function, argument in steps:
            with suppress(Exception):  # a lost card refuses; its memory is freed with the process
                function(argument)
        self._closed = True
        self._modules.clear()
        self._memory.clear()


def _at_end(owner: Any, function: Callable[[int], Any], handle: int) -> weakref.finalize[Any, Any]:
    """Call `function(handle)` when the owner is collected, ignoring errors; not at process exit."""

    def finish() -> None:
        with suppress(Exception):
            function(handle)

    finalizer = weakref.finalize(owner, finish)
    finalizer.atexit = False
    return finalizer


def _contiguous(array: NDArray[Any]) -> int:
    if not array.flags.c_contiguous:
        raise ValueError("only contiguous arrays are copied")
    return int(array.nbytes)
