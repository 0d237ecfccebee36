"""Anonymous memory for weights, KV and work space: aligned, on huge pages where the system has them, freed explicitly.

Also the free memory of the machine, and the release of a memory-mapped tensor's pages.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm import units
from pyllm.errors import OutOfMemoryError

_HUGE = 2 << 20


class Memory:
    """One anonymous mapping, zeroed, at an address that suits huge pages. Untouched pages take no memory."""

    def __init__(self, n_bytes: int, purpose: str) -> None:
        self.n_bytes = n_bytes
        size = max(n_bytes, 1) + (_HUGE if n_bytes >= _HUGE else 64)
        try:
            if hasattr(mmap, "MAP_PRIVATE"):
                self._map: mmap.mmap | None = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            else:
                self._map = mmap.mmap(-1, size)
        except (OSError, ValueError, OverflowError) as e:
            raise OutOfMemoryError(f"the system refuses {units.size(n_bytes)} for {purpose} ({e})") from e
        if n_bytes >= _HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # a kernel without huge pages: only slower
                self._map.madvise(mmap.MADV_HUGEPAGE)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        align = _HUGE if n_bytes >= _HUGE else 64
        self.address = (base + align - 1) // align * align

    def close(self) -> None:
        """Free the memory. Nothing may use it afterwards."""
        if self._map is not None:
            self._map.close()
            self._map = None
            self.address = self.n_bytes = 0


def at(address: int, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """A numpy view of memory at an address. It does not keep the memory alive."""
    n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * n_bytes).from_address(address), dtype).reshape(shape)


def aligned_zeros(shape: tuple[int, ...], dtype: Any, align: int = 64) -> NDArray[Any]:
    """`numpy.zeros` whose first element is at a multiple of `align`; lives as long as its views."""
    n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(n_bytes + align, np.uint8)
    skip = -raw.ctypes.data % align
    return raw[skip : skip + n_bytes].view(dtype).reshape(shape)


def release(data: NDArray[np.uint8]) -> None:
    """Release a memory-mapped tensor's pages; the next read loads them from the file again."""
    if not hasattr(mmap, "MADV_DONTNEED") or data.flags.writeable or not _is_mapped(data):
        return
    page = mmap.PAGESIZE
    start = data.ctypes.data
    first, last = -(-start // page) * page, (start + data.nbytes) // page * page
    if last > first:
        _libc().madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED)


def _is_mapped(data: Any) -> bool:
    while data is not None:
        if isinstance(data, mmap.mmap):
            return True
        data = data.obj if isinstance(data, memoryview) else getattr(data, "base", None)
    return False


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def free_memory() -> int | None:
    """Bytes that this process may still take without swapping, or None where the system does not say."""
    if sys.platform == "win32":
        return _free_windows()
    available = _meminfo()
    if available is None:
        try:
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (ValueError, OSError):
            return None
    group = _cgroup_free()
    return available if group is None else min(available, group)


def total_memory() -> int | None:
    """Bytes of memory of this machine, where known."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def resident() -> int | None:
    """Bytes of memory that this process holds now, mapped files included; None where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
    except (OSError, ValueError, IndexError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def check_free(wanted: dict[str, int]) -> None:
    """Raise OutOfMemoryError, with figures, when the sum of `wanted` (bytes by purpose) is more than what is free."""
    total, free = sum(wanted.values()), free_memory()
    if free is not None and total > free:
        parts = ", ".join(f"{name} {units.size(n)}" for name, n in wanted.items())
        raise OutOfMemoryError(
            f"{units.size(total)} of memory are needed ({parts}), {units.size(free)} are free; "
            "a shorter context, fewer sequences or a smaller quantization takes less"
        )


def _meminfo() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _cgroup_free() -> int | None:
    """Bytes left in the process's control group; its file cache counts as free."""
    for limit, used, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        root = Path("/sys/fs/cgroup")
        try:
            most, now = int((root / limit).read_text()), int((root / used).read_text())
            stat = (root / used).with_name("memory.stat").read_text().split()
        except (OSError, ValueError):
            continue
        reclaimable = int(stat[stat.index(cached) + 1]) if cached in stat else 0
        return max(0, most - now + reclaimable)
    return None


def _free_windows() -> int | None:
    class Status(ctypes.Structure):
        _fields_ = (
            ("length", ctypes.c_uint32),
            ("load", ctypes.c_uint32),
            *(
                (name, ctypes.c_uint64)
                for name in ("total", "free", "total_page", "free_page", "total_v", "free_v", "ext")
            ),
        )

    status = Status(length=ctypes.sizeof(Status))
    windll: Any = getattr(ctypes, "windll", None)
    return int(status.free) if windll and windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)) else None
