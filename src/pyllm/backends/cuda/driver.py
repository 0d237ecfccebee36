"""The cards of this machine, queried from the driver through ctypes: quickly, without importing cupy."""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from collections.abc import Callable
from typing import Any

from pyllm.errors import BackendError
from pyllm.records import dataclass

OLDEST_DRIVER = 12000
"""Oldest supported driver, as its CUDA version: 1000 * major + 10 * minor."""
OLDEST_CAPABILITY = 7, 5
_MAJOR, _MINOR, _N_SM, _SHARED = 75, 76, 16, 97
"""Attributes of a device: its compute capability, its multiprocessors, the most shared memory of a block."""
_PACKAGES = {
    "cupy": ("cupy-cuda11x", "cupy-cuda12x", "cupy-cuda13x", "cupy"),
    "compiler": ("nvidia-cuda-nvrtc-cu12", "nvidia-cuda-nvrtc"),
}
INSTALL_DRIVER = "install NVIDIA's driver for CUDA 12 or newer (nvidia-smi shows what is there)"


@dataclass(frozen=True, slots=True)
class Card:
    """A card as the driver describes it. Its index is the driver's, which CUDA_VISIBLE_DEVICES decides."""

    index: int
    name: str
    capability: tuple[int, int]
    memory_total: int
    n_sm: int
    max_shared: int
    bus_id: bytes

    @property
    def usable(self) -> bool:
        return self.capability >= OLDEST_CAPABILITY

    @property
    def memory_free(self) -> int | None:
        """Bytes free now, None where the management library does not tell; of a MIG part it tells the card's."""
        free = _free(self.bus_id)
        return None if free is None else min(free, self.memory_total)


def version_text(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def cards() -> tuple[Card, ...]:
    """Usable cards. Raises BackendError with the reason and what would help."""
    cuda = _library("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    if cuda is None:
        raise BackendError(f"there is no NVIDIA driver here: libcuda is not found; {INSTALL_DRIVER}")
    ask = _asker(cuda)
    if code := cuda.cuInit(0):
        raise BackendError(_NO_START.get(code, f"NVIDIA's driver does not start: error {code} of cuInit"))
    version = ask(cuda.cuDriverGetVersion)
    if version < OLDEST_DRIVER:
        raise BackendError(
            f"the driver supports CUDA {version_text(version)}, which is too old: "
            f"{version_text(OLDEST_DRIVER)} or newer is needed; update NVIDIA's driver"
        )
    found = tuple(_card(cuda, ask, index) for index in range(ask(cuda.cuDeviceGetCount)))
    usable = tuple(c for c in found if c.usable)
    if not usable:
        have = ", ".join(f"{c.name} has {c.capability[0]}.{c.capability[1]}" for c in found) or "no card is visible"
        raise BackendError(f"a card of compute capability 7.5 or newer is needed; {have}")
    return usable


_NO_START = {
    100: "NVIDIA's driver sees no card; check nvidia-smi and CUDA_VISIBLE_DEVICES",
    34: "the library of NVIDIA's driver is a stub that cannot run anything; put the driver's own libcuda before it",
    802: "the card is not ready yet (its fabric manager does not run)",
    803: "NVIDIA's kernel module and its library are of different versions; restart the machine after a driver update",
    804: "CUDA's forward compatibility package does not support this card; update the driver itself",
}


def check_cupy(driver_version: int | None = None) -> None:
    """Raise BackendError unless a cupy that the driver can run is installed; cupy is not imported."""
    if importlib.util.find_spec("cupy") is None:
        raise BackendError("cupy is not installed; pip install 'pyllm[cuda]', or cupy-cuda13x for CUDA 13")
    if driver_version is None:
        driver_version = _driver_version()
    for flavour, needs in (("cupy-cuda13x", 13000), ("cupy-cuda11x", None)):
        if is_installed(flavour) and (needs is None or 0 < driver_version < needs):
            raise BackendError(wrong_cupy(flavour, driver_version))


def wrong_cupy(flavour: str, driver_version: int) -> str:
    """The message for a cupy built for another CUDA than the driver's."""
    return (
        f"{flavour} does not run with this driver, which supports CUDA {version_text(driver_version)}; "
        f"pip uninstall {flavour}, then pip install cupy-cuda{min(13, driver_version // 1000)}x, or update the driver"
    )


def versions() -> dict[str, str]:
    """Versions of CUDA's parts: the driver's, cupy's, and the compiler's where it is a Python package."""
    found = {"driver": f"for CUDA up to {version_text(_driver_version())}"}
    for name, packages in _PACKAGES.items():
        installed = [f"{p} {version}" for p in packages if (version := _version_of(p))]
        if installed:
            found[name] = ", ".join(installed)
    return found


def is_installed(package: str) -> bool:
    return _version_of(package) is not None


def _version_of(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version  # slow, and needed only where there is a driver

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _driver_version() -> int:
    """CUDA version that the driver supports, 0 where there is no driver."""
    cuda = _library("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    version = ctypes.c_int(0)
    if cuda is not None:
        cuda.cuDriverGetVersion(ctypes.byref(version))
    return version.value


def _library(name: str) -> Any:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


def _asker(library: Any) -> Callable[..., int]:
    """A function that calls another with a pointer to an int first, and returns the int."""

    def ask(function: Any, *args: int) -> int:
        out = ctypes.c_int(0)
        if code := function(ctypes.byref(out), *args):
            raise BackendError(f"NVIDIA's driver does not answer: error {code} of {function.__name__}")
        return out.value

    return ask


def _card(cuda: Any, ask: Callable[..., int], index: int) -> Card:
    device = ask(cuda.cuDeviceGet, index)
    name, bus, total = ctypes.create_string_buffer(256), ctypes.create_string_buffer(32), ctypes.c_size_t(0)
    cuda.cuDeviceGetName(name, 256, device)
    cuda.cuDeviceGetPCIBusId(bus, 32, device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(total), device)
    capability = ask(cuda.cuDeviceGetAttribute, _MAJOR, device), ask(cuda.cuDeviceGetAttribute, _MINOR, device)
    n_sm, shared = ask(cuda.cuDeviceGetAttribute, _N_SM, device), ask(cuda.cuDeviceGetAttribute, _SHARED, device)
    text = name.value.decode(errors="replace")
    return Card(index, text, capability, total.value, n_sm, shared, bus.value)


class _Memory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


def _free(bus_id: bytes) -> int | None:
    """Bytes free on a card, from the management library: the driver would need a context, which takes memory."""
    nvml = _library("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")
    if nvml is None or nvml.nvmlInit_v2():
        return None
    try:
        handle, memory = ctypes.c_void_p(), _Memory()
        if nvml.nvmlDeviceGetHandleByPciBusId_v2(bus_id, ctypes.byref(handle)):
            return None
        return None if nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) else int(memory.free)
    finally:
        nvml.nvmlShutdown()
