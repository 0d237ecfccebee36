"""Safetensors files: tensors over a memory map, every size checked against the file before it is believed.

Source: the format's description in the safetensors repository: a uint64 header length, a JSON header of names with
dtype, shape and byte offsets, then the data.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.errors import ModelError

CARRIERS: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "F8_E4M3": np.dtype("u1"),
    "F8_E5M2": np.dtype("u1"),
    "F8_E8M0": np.dtype("u1"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("u1"),
}
"""Types of elements, by the format's names, and the numpy type that holds their bits."""

_MAX_HEADER = 32 << 20  # bytes; a hundred thousand tensors take less than half
_MAX_DIMS = 8
_READ_AHEAD = 8 << 20
"""Bytes that the system is asked to read before they are needed."""
_MAX_NAME = 4096


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor in a file: `dtype` as the format names it, `shape` outermost first, bytes [start, stop) of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class SafetensorsFile:
    """One open file; `entries` by name, in the order of the header. Raises ModelError where it is damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open(path, "rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                if self.size < 8:
                    raise self._error(f"it has {self.size} bytes; it is empty or was not downloaded whole")
                self._map = mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_READ)
        except (OSError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise ModelError(f"{path} cannot be opened: {reason}") from error
        self._bytes: NDArray[np.uint8] = np.frombuffer(self._map, np.uint8)
        self._used: tuple[int, int] | None = None
        header, data_start = self._header()
        entries = [self._entry(name, item, data_start) for name, item in header.items()]
        self._check_overlap(entries)
        self.entries: Mapping[str, Entry] = MappingProxyType({e.name: e for e in entries})

    def read(self, entry: Entry, start: int, stop: int) -> NDArray[Any]:
        """Elements [start, stop) of a tensor, a read-only view of the map.

        What the previous call returned is given back to the system, so that a tensor read piece by piece never fills
        the memory; such a view stays valid, and is only read from the file again.
        """
        carrier = CARRIERS[entry.dtype]
        begin, end = entry.start + start * carrier.itemsize, entry.start + stop * carrier.itemsize
        if self._used is not None and self._used != (begin, end):
            self._advise("MADV_DONTNEED", *self._used)
        self._used = begin, end
        self._advise("MADV_WILLNEED", end, min(end + _READ_AHEAD, self.size))
        return np.frombuffer(self._map, carrier, stop - start, begin)

    def close(self) -> None:
        """Unmap, now or as soon as the last view is gone."""
        self._bytes = np.empty(0, np.uint8)
        with contextlib.suppress(BufferError):
            self._map.close()

    def _advise(self, advice: str, begin: int, end: int) -> None:
        """Tell the system how whole pages between two offsets will be used, where it can be told."""
        first, last = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
        if first < last and hasattr(mmap, advice):
            with contextlib.suppress(OSError, ValueError):
                self._map.madvise(getattr(mmap, advice), first, last - first)

    def _error(self, what: str) -> ModelError:
        return ModelError(f"{self.path} is no usable safetensors file: {what}")

    def _header(self) -> tuple[dict[str, Any], int]:
        if self._map[:8] == b"version ":
            raise self._error("it is a Git LFS pointer; fetch the file itself with `git lfs pull`")
        n = int.from_bytes(self._map[:8], "little")
        if n > _MAX_HEADER and n <= self.size - 8:
            raise self._error(f"its header has {n} bytes; at most {_MAX_HEADER} are read")
        if n > self.size - 8:
            raise self._error(f"its header should have {n} bytes, the file has {self.size}; download it again")
        try:
            header = json.loads(self._map[8 : 8 + n].decode("utf-8"), object_pairs_hook=_without_repeats)
        except (ValueError, RecursionError) as error:
            raise self._error(f"its header is not JSON ({error}); download it again") from None
        if not isinstance(header, dict):
            raise self._error("its header is not a table of tensors")
        header.pop("__metadata__", None)
        return header, 8 + n

    def _entry(self, name: str, item: Any, data_start: int) -> Entry:
        if len(name) > _MAX_NAME:
            raise self._error(f"a tensor's name is {len(name)} characters long")
        try:
            dtype, shape, (start, stop) = item["dtype"], item["shape"], item["data_offsets"]
        except (TypeError, KeyError, ValueError):
            raise self._error(f"tensor {name!r} lacks dtype, shape or data_offsets") from None
        if not isinstance(dtype, str) or dtype not in CARRIERS:
            raise self._error(f"tensor {name!r} has elements of type {dtype!r}; known are {', '.join(CARRIERS)}")
        if not isinstance(shape, list) or len(shape) > _MAX_DIMS or not all(map(_is_count, [*shape, start, stop])):
            raise self._error(f"tensor {name!r} has an impossible shape or impossible offsets")
        n_bytes = CARRIERS[dtype].itemsize
        for n in shape:
            n_bytes *= n
        if stop - start != n_bytes or data_start + stop > self.size:
            raise self._error(
                f"tensor {name!r} of shape {shape} and type {dtype} needs {n_bytes} bytes; its offsets are {start} and "
                f"{stop} of {self.size - data_start} bytes of data; the file is truncated or damaged, download it again"
            )
        return Entry(name, dtype, tuple(shape), data_start + start, data_start + stop)

    def _check_overlap(self, entries: list[Entry]) -> None:
        before: Entry | None = None
        for entry in sorted((e for e in entries if e.start < e.stop), key=lambda e: e.start):
            if before is not None and entry.start < before.stop:
                raise self._error(f"tensors {before.name!r} and {entry.name!r} overlap")
            before = entry


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 60


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name is there twice")
    return table
