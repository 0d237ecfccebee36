"""The table that a step walks: kernels with their argument slots, and the work memory that their values share.

While a table is built, nothing has an address: entries keep a function that gives their slots once memory is there.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pyllm.backends.cpu.compiler import Kernel
from pyllm.backends.cpu.memory import aligned_zeros

LINE = 64
"""Bytes of a cache line; everything starts at one."""


@dataclass(eq=False, slots=True)
class Buffer:
    """Work memory from the entry that first writes it to the one that last reads it (or outside of the table's)."""

    n_bytes: int
    address: int = 0
    first: int = -1
    last: int = -1
    outside: bool = False


@dataclass(frozen=True, slots=True)
class View:
    """Rows in a buffer: where the first starts and how many bytes are between them."""

    buffer: Buffer
    ld: int
    offset: int = 0

    @property
    def address(self) -> int:
        return self.buffer.address + self.offset


@dataclass(frozen=True, slots=True)
class Entry:
    """One op of the table: a kernel, its slots from the third on, and what a profile calls it."""

    kernel: Kernel
    slots: Callable[[], Sequence[int | float]]
    label: str
    wide: Kernel | None = None
    """Takes the kernel's place in steps of many tokens (WIDE)."""

    @property
    def kernels(self) -> list[Kernel]:
        return [self.kernel, self.wide] if self.wide else [self.kernel]


@dataclass
class Table:
    """Entries in the order of their execution, their buffers, and scratch memory that each thread has for itself."""

    entries: list[Entry] = field(default_factory=list)
    buffers: list[Buffer] = field(default_factory=list)
    scratch: Buffer = field(default_factory=lambda: Buffer(0, outside=True))
    scratch_bytes: int = 0

    def add(
        self,
        kernel: Kernel,
        slots: Callable[[], Sequence[int | float]],
        *,
        reads: Iterable[View | Buffer | None] = (),
        writes: Iterable[View | Buffer | None] = (),
        label: str = "",
        wide: Kernel | None = None,
    ) -> None:
        """Append an entry. `reads` and `writes` say how long buffers live; None stands for what is not there."""
        for item in (*writes, *reads):
            if item is not None:
                self.touch(item.buffer if isinstance(item, View) else item, len(self.entries))
        self.entries.append(Entry(kernel, slots, label, wide))

    def touch(self, buffer: Buffer, at: int) -> None:
        """The buffer is used by entry `at`."""
        if buffer.first < 0:
            buffer.first = at
            if not buffer.outside:
                self.buffers.append(buffer)
        buffer.first, buffer.last = min(buffer.first, at), max(buffer.last, at)

    def keep(self, buffer: Buffer) -> None:
        """The buffer is its users' own from step to step, and zero at first."""
        self.touch(buffer, 0)
        self.touch(buffer, 1 << 40)

    def need_scratch(self, n_bytes: int) -> None:
        """Each thread gets at least so much."""
        self.scratch_bytes = max(self.scratch_bytes, _lines(n_bytes))

    def arrange(self) -> int:
        """Give every buffer an offset (kept as its address), reusing what has ended; returns the bytes of all."""
        free: list[tuple[int, int]] = []  # (offset, bytes), by offset, never adjacent
        alive: list[Buffer] = []
        end = 0
        for b in sorted(self.buffers, key=lambda b: b.first):
            for old in [a for a in alive if a.last < b.first]:
                alive.remove(old)
                _give(free, old.address, _lines(old.n_bytes))
            b.address, end = _take(free, _lines(b.n_bytes), end)
            alive.append(b)
        return end

    def place(self, base: int, scratch: int) -> None:
        """Turn offsets into addresses."""
        for b in self.buffers:
            b.address += base
        self.scratch.address = scratch

    def encode(self, step: int, addresses: dict[Kernel, int]) -> Encoded:
        """The table in memory, for the STEP block at `step`."""
        slots = [list(e.slots()) for e in self.entries]
        width = -(-(2 + max((len(s) for s in slots), default=0)) // 8) * 8
        args = aligned_zeros((len(slots), width), np.int64)
        counters = aligned_zeros((len(slots), LINE // 8), np.int64)
        tables = aligned_zeros((2, len(slots), 2), np.int64)
        for i, values in enumerate(slots):
            args[i, 0], args[i, 1] = step, counters[i].ctypes.data
            for j, v in enumerate(values):
                if isinstance(v, float):
                    args[i].view(np.float64)[j + 2] = v
                else:
                    args[i, j + 2] = v
            tables[:, i, 0] = [addresses[k] for k in (self.entries[i].kernels[0], self.entries[i].kernels[-1])]
            tables[:, i, 1] = args[i].ctypes.data
        return Encoded(tables, args, counters)


@dataclass(frozen=True, slots=True)
class Encoded:
    """The arrays that make a table, one for few and one for many tokens; they have to live as long as it is walked."""

    tables: NDArray[np.int64]
    args: NDArray[np.int64]
    counters: NDArray[np.int64]

    @property
    def addresses(self) -> tuple[int, int]:
        """Of the usual table, and of the one with wide kernels."""
        return int(self.tables[0].ctypes.data), int(self.tables[1].ctypes.data)


def _lines(n_bytes: int) -> int:
    return -(-n_bytes // LINE) * LINE


def _take(free: list[tuple[int, int]], n: int, end: int) -> tuple[int, int]:
    """Offset of `n` bytes from the smallest gap that holds them, or from the end, which moves; (offset, end)."""
    fits = [gap for gap in free if gap[1] >= n]
    if fits:
        gap = min(fits, key=lambda g: g[1])
        free.remove(gap)
        if gap[1] > n:
            insort(free, (gap[0] + n, gap[1] - n))
        return gap[0], end
    if free and sum(free[-1]) == end:  # a last gap that is too small grows
        start = free.pop()[0]
        return start, start + n
    return end, end + n


def _give(free: list[tuple[int, int]], offset: int, n: int) -> None:
    """Return a piece and join it with the gaps that it touches."""
    for gap in [g for g in free if g[0] + g[1] == offset or g[0] == offset + n]:
        free.remove(gap)
        offset, n = min(offset, gap[0]), n + gap[1]
    insort(free, (offset, n))
