"""A cupy without a card: runtime and driver that keep books, run enqueued work late, and fail on demand.

Memory is the host's. What is enqueued runs when somebody waits, so a host that does not wait sees old contents. Every
handle that is given out is in `alive` until it is given back. A kernel is a Python function of its argument bytes.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


class CUDARuntimeError(RuntimeError):
    def __init__(self, status: int) -> None:
        super().__init__(f"cudaErrorOfNumber{status}: words of CUDA")
        self.status = status


class NVRTCError(RuntimeError):
    pass


Work = Callable[[], object]


class FakeCuda:
    """State behind `cupy.cuda.runtime` and `cupy.cuda.driver`."""

    def __init__(self, n_devices: int = 1, capability: tuple[int, int] = (9, 0), memory: int = 1 << 20) -> None:
        self.capability, self.total = capability, memory
        self.n_devices = n_devices
        self.versions = 12080, 12090  # of the driver, of cupy
        self.device = -1
        self.alive: dict[tuple[str, int], Any] = {}
        self.fail: dict[str, int] = {}
        """By name of a call: the status that it raises."""
        self.calls: list[str] = []
        self.functions: dict[str, Callable[[bytes], object]] = {}
        """By name: kernels that every module has."""
        self.arg_bytes = 0
        self._next = 0x1000
        self._capture: list[Work] | None = None
        self._attributes: dict[tuple[int, int], int] = {}

    # --- books

    def new(self, kind: str, value: Any = None) -> int:
        self._next += 0x100
        self.alive[kind, self._next] = value
        return self._next

    def drop(self, kind: str, handle: int) -> None:
        del self.alive[kind, handle]

    def of(self, kind: str) -> list[int]:
        return [handle for k, handle in self.alive if k == kind]

    def check(self, name: str) -> None:
        self.calls.append(name)
        if name in self.fail:
            raise CUDARuntimeError(self.fail[name])

    def enqueue(self, stream: int, work: Work) -> None:
        (self.alive["stream", stream] if self._capture is None else self._capture).append(work)

    def run(self, stream: int) -> None:
        queue = self.alive["stream", stream]
        while queue:
            queue.pop(0)()

    # --- runtime

    def getDeviceCount(self) -> int:
        return self.n_devices

    def driverGetVersion(self) -> int:
        return self.versions[0]

    def runtimeGetVersion(self) -> int:
        return self.versions[1]

    def setDevice(self, index: int) -> None:
        self.device = index

    def getDeviceProperties(self, index: int) -> dict[str, Any]:
        return {"name": b"Fake GPU"}

    def deviceGetAttribute(self, attribute: int, index: int) -> int:
        return {16: 8, 97: 100 << 10, 75: self.capability[0], 76: self.capability[1]}[attribute]

    def memGetInfo(self) -> tuple[int, int]:
        return self.total - sum(len(b) for (k, _), b in self.alive.items() if k == "memory"), self.total

    def malloc(self, n: int) -> int:
        if n > self.memGetInfo()[0]:
            raise CUDARuntimeError(2)
        buffer = ctypes.create_string_buffer(n)
        self.alive["memory", ctypes.addressof(buffer)] = buffer
        return ctypes.addressof(buffer)

    def free(self, address: int) -> None:
        self.drop("memory", address)

    def hostAlloc(self, n: int, flags: int) -> int:
        buffer = ctypes.create_string_buffer(n)
        self.alive["host", ctypes.addressof(buffer)] = buffer
        return ctypes.addressof(buffer)

    def freeHost(self, address: int) -> None:
        self.drop("host", address)

    def memcpyAsync(self, to: int, source: int, n: int, kind: int, stream: int) -> None:
        self.enqueue(stream, lambda: ctypes.memmove(to, source, n))

    def memcpyPeerAsync(self, to: int, to_device: int, source: int, source_device: int, n: int, stream: int) -> None:
        assert to_device != source_device
        self.memcpyAsync(to, source, n, 3, stream)

    def deviceCanAccessPeer(self, device: int, peer: int) -> bool:
        return True

    def deviceEnablePeerAccess(self, peer: int) -> None:
        assert peer != self.device

    def memsetAsync(self, address: int, value: int, n: int, stream: int) -> None:
        self.enqueue(stream, lambda: ctypes.memset(address, value, n))

    def streamCreateWithFlags(self, flags: int) -> int:
        return self.new("stream", [])

    def streamDestroy(self, stream: int) -> None:
        self.drop("stream", stream)

    def streamSynchronize(self, stream: int) -> None:
        assert self._capture is None
        self.run(stream)

    def streamWaitEvent(self, stream: int, event: int) -> None:
        assert ("event", event) in self.alive

    def streamBeginCapture(self, stream: int, mode: int) -> None:
        assert self._capture is None
        self._capture = []

    def streamEndCapture(self, stream: int) -> int:
        work, self._capture = self._capture, None
        return self.new("graph", work)

    def graphInstantiate(self, graph: int) -> int:
        return self.new("exec", self.alive["graph", graph])

    def graphDestroy(self, graph: int) -> None:
        self.drop("graph", graph)

    def graphExecDestroy(self, graph: int) -> None:
        self.drop("exec", graph)

    def graphLaunch(self, graph: int, stream: int) -> None:
        for work in self.alive["exec", graph]:
            self.enqueue(stream, work)

    def eventCreateWithFlags(self, flags: int) -> int:
        return self.new("event")

    def eventDestroy(self, event: int) -> None:
        self.drop("event", event)

    def eventRecord(self, event: int, stream: int) -> None:
        self.alive["event", event] = stream

    def eventQuery(self, event: int) -> int:
        return 600 if self.alive["stream", self.alive["event", event]] else 0

    def eventSynchronize(self, event: int) -> None:
        self.run(self.alive["event", event])

    def eventElapsedTime(self, start: int, end: int) -> float:
        return 2.5

    # --- driver

    def moduleLoadData(self, image: bytes) -> int:
        return self.new("module", image)

    def moduleUnload(self, module: int) -> None:
        self.drop("module", module)

    def moduleGetFunction(self, module: int, name: str) -> int:
        if name not in self.functions:
            raise CUDARuntimeError(500)
        self._next += 0x100
        self.alive["function", self._next] = name
        return self._next

    def funcGetAttribute(self, attribute: int, function: int) -> int:
        return {1: 1024}[attribute]

    def funcSetAttribute(self, function: int, attribute: int, value: int) -> None:
        self._attributes[function, attribute] = value

    def launchKernel(self, function: int, *rest: int) -> None:
        gx, gy, gz, _, by, bz, shared, stream, params, extra = rest
        assert (by, bz, extra) == (1, 1, 0)
        assert gx * gy * gz > 0
        assert shared <= self._attributes[function, 8]
        address = ctypes.c_void_p.from_address(params).value
        assert address is not None
        args, kernel = ctypes.string_at(address, self.arg_bytes), self.functions[self.alive["function", function]]
        self.enqueue(stream, lambda: kernel(args))


class FakeNvrtc:
    """`cupy.cuda.nvrtc`: the cubin is the source's text; a source with "wrong" in it does not compile."""

    def __init__(self) -> None:
        self.version, self.archs = (12, 9), (75, 80, 86, 89, 90, 100, 120)
        self.programs: dict[int, str] = {}
        self.compiled: list[list[str]] = []
        self.n_made = 0

    def getVersion(self) -> tuple[int, int]:
        return self.version

    def getSupportedArchs(self) -> tuple[int, ...]:
        return self.archs

    def createProgram(self, text: str, name: str, headers: list[bytes], names: list[bytes]) -> int:
        self.n_made += 1
        self.programs[self.n_made] = text
        return self.n_made

    def compileProgram(self, program: int, options: list[str]) -> None:
        self.compiled.append(options)
        if "wrong" in self.programs[program]:
            raise NVRTCError("NVRTC_ERROR_COMPILATION (6)")

    def getProgramLog(self, program: int) -> str:
        return "a.cu(1): error: what is this" if "wrong" in self.programs[program] else ""

    def getCUBIN(self, program: int) -> bytes:
        return self.programs[program].encode()

    def destroyProgram(self, program: int) -> None:
        del self.programs[program]


def install(patch: pytest.MonkeyPatch, cuda: FakeCuda, nvrtc: Any) -> None:
    """Make `from cupy.cuda import driver, nvrtc, runtime` find these."""

    class Checked:
        def __getattr__(self, name: str) -> Any:
            function = getattr(cuda, name)

            def call(*args: Any) -> Any:
                cuda.check(name)
                return function(*args)

            return call

    package = ModuleType("cupy")
    package.__spec__ = importlib.machinery.ModuleSpec("cupy", None)
    package.cuda = ModuleType("cupy.cuda")  # type: ignore[attr-defined]
    vars(package.cuda).update(runtime=Checked(), driver=Checked(), nvrtc=nvrtc)
    patch.setitem(sys.modules, "cupy", package)
    patch.setitem(sys.modules, "cupy.cuda", package.cuda)


class FakeLibrary(SimpleNamespace):
    """libcuda, or the management library, as ctypes would load it."""

    @staticmethod
    def driver(
        cards: list[tuple[str, tuple[int, int], int]], version: int = 12080, init: int = 0, query: int = 0
    ) -> FakeLibrary:
        """`cards`: name, compute capability, bytes. `init`, `query`: what cuInit and the questions return."""

        def put(out: Any, value: int) -> int:
            out._obj.value = value
            return query

        def fill_name(out: Any, n: int, device: int) -> int:
            out.value = cards[device][0].encode()
            return 0

        def fill_bus(out: Any, n: int, device: int) -> int:
            out.value = b"0000:%02d:00.0" % device
            return 0

        def attribute(out: Any, number: int, device: int) -> int:
            return put(out, {75: cards[device][1][0], 76: cards[device][1][1], 16: 8, 97: 99 << 10}[number])

        def count(out: Any) -> int:
            return put(out, len(cards))

        return FakeLibrary(
            cuInit=lambda flags: init,
            cuDriverGetVersion=lambda out: put(out, version),
            cuDeviceGetCount=count,
            cuDeviceGet=put,
            cuDeviceGetName=fill_name,
            cuDeviceGetPCIBusId=fill_bus,
            cuDeviceTotalMem_v2=lambda out, device: put(out, cards[device][2]),
            cuDeviceGetAttribute=attribute,
        )

    @staticmethod
    def management(free: int | None) -> FakeLibrary:
        def handle(bus: bytes, out: Any) -> int:
            return int(not bus.startswith(b"0000:"))

        def info(handle: Any, out: Any) -> int:
            out._obj.free = free or 0
            return int(free is None)

        return FakeLibrary(
            nvmlInit_v2=lambda: 0,
            nvmlShutdown=lambda: 0,
            nvmlDeviceGetHandleByPciBusId_v2=handle,
            nvmlDeviceGetMemoryInfo=info,
        )
