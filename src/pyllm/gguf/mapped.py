"""A memory-mapped file: a read-only map, and bounds-checked little-endian reads."""

from __future__ import annotations

import contextlib
import mmap
import os
from pathlib import Path
from struct import Struct

import numpy as np
from numpy.typing import NDArray

from pyllm.errors import ClosedError, GGUFError

_U32 = Struct("<I")
_U64 = Struct("<Q")


class MappedFile:
    """A file, mapped. `bytes` is uint8 [size], a view of the map; `map` reads slices as bytes objects.

    Views taken from `bytes` keep the map alive after `close`. Raises GGUFError where the file cannot be mapped.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open(path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size == 0:
                    raise self.error(0, "the file is empty")
                self.map = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        except (OSError, ValueError, OverflowError) as e:
            reason = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
            raise GGUFError(f"{path} cannot be opened: {reason}") from e
        self.size = size
        self.bytes: NDArray[np.uint8] = np.frombuffer(self.map, np.uint8)
        self.closed = False

    def error(self, offset: int, what: str) -> GGUFError:
        """A GGUFError with the file, the offset and `what` is wrong there."""
        return GGUFError(f"{self.path}: at byte {offset}: {what}")

    def check_open(self) -> None:
        """Raises ClosedError after `close`."""
        if self.closed:
            raise ClosedError(f"{self.path} was closed")

    def need(self, offset: int, n: int, what: str) -> None:
        """Raises GGUFError unless `n` bytes follow `offset`."""
        if offset + n > self.size:
            raise self.error(offset, f"{what} needs {n} bytes, but the file ends after {self.size}; it is truncated")

    def u32(self, offset: int, what: str) -> int:
        self.need(offset, 4, what)
        return int(_U32.unpack_from(self.map, offset)[0])

    def u64(self, offset: int, what: str) -> int:
        self.need(offset, 8, what)
        return int(_U64.unpack_from(self.map, offset)[0])

    def advise(self, start: int, stop: int, advice: str, *, inside: bool) -> None:
        """Advise the system on the use of bytes [start, stop); `advice` names a constant of `mmap`.

        Whole pages only: those `inside` the range, or all that it touches. Does nothing where the platform has no such
        call.
        """
        option = getattr(mmap, advice, None)
        if option is None or self.closed:
            return
        page = mmap.PAGESIZE
        first = -(-start // page) * page if inside else start // page * page
        last = stop // page * page if inside else min(-(-stop // page) * page, self.size)
        if first < last:
            with contextlib.suppress(OSError):
                self.map.madvise(option, first, last - first)

    def close(self) -> None:
        """Unmap, now or when the last view is gone."""
        self.closed = True
        self.bytes = np.empty(0, np.uint8)
        with contextlib.suppress(BufferError):
            self.map.close()
