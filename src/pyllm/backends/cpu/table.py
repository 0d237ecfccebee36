"""The table that a step walks: kernels with their arguments, and the work memory of values.

Entries keep their arguments; addresses are asked for once memory is placed.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import field

import numpy as np
from numpy.typing import NDArray

from pyllm.backends.plan.memory import Buffer, Work
from pyllm.jit.arguments import PREFIX, Arguments
from pyllm.jit.compiler import Kernel
from pyllm.jit.memory import aligned_zeros
from pyllm.records import dataclass

LINE = 64
"""Bytes of a cache line; everything starts at one."""

FIRST_WIDE, NEVER, NARROW, WIDE = 12, 14, 16, 18
"""Slots of the STEP block: the first token of the prefill path, a number larger than any row, and the ranges (first,
count) of the tokens on the 8-bit and on the prefill path."""
FIRST_WIDE_ROW, NARROW_ROWS, WIDE_ROWS = 20, 22, 24
"""The same for the output rows."""


STATE_IN, SOURCES = 27, 31
"""Slots of the STEP block: the addresses of the batch's state_in, saves, save_after and save_slot; of its sources."""


def round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


@dataclass(frozen=True, slots=True)
class View:
    """Rows in a buffer: the offset of the first, and the bytes between rows."""

    buffer: Buffer
    ld: int
    offset: int = 0

    @property
    def address(self) -> int:
        return self.buffer.address + self.offset


@dataclass(eq=False, slots=True)
class Scratch:
    """Scratch memory of each thread: `ld` bytes, as many as the most demanding kernel needs."""

    address: int = 0
    ld: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """One op of the table: a kernel, its arguments, and its label in profiles."""

    kernel: Kernel
    args: Arguments
    label: str
    wide: Entry | None = None
    """Kernel of the same op for rows of the prefill path."""
    narrow: bool = False
    """Only for rows of the 8-bit path; another entry computes the others."""


@dataclass
class Table:
    """Entries in the order of their execution, their buffers, and scratch memory."""

    entries: list[Entry] = field(default_factory=list)
    work: Work = field(default_factory=lambda: Work(LINE))
    scratch: Scratch = field(default_factory=Scratch)

    def add(
        self,
        kernel: Kernel,
        args: Arguments,
        *,
        label: str = "",
        wide: Entry | None = None,
        narrow: bool = False,
    ) -> None:
        """Append an entry. Its arguments extend the live ranges of their buffers."""
        for written in (True, False):
            for place in [*args.places(written=written), *(wide.args.places(written=written) if wide else ())]:
                if isinstance(place, View | Buffer):
                    self.touch(place.buffer if isinstance(place, View) else place, len(self.entries))
        self.entries.append(Entry(kernel, args, label, wide, narrow))

    def touch(self, buffer: Buffer, at: int) -> None:
        """Extend the buffer's live range to entry `at`."""
        self.work.touch(buffer, at)

    def need_scratch(self, n_bytes: int) -> None:
        """Give each thread at least this many bytes of scratch."""
        self.scratch.ld = max(self.scratch.ld, round_up(n_bytes, LINE))

    def arrange(self) -> int:
        """Give every buffer an offset, sharing memory by live range; returns the total bytes."""
        return self.work.arrange()

    def kernels(self) -> list[Kernel]:
        return [k for e in self.entries for k in ([e.kernel, e.wide.kernel] if e.wide else [e.kernel])]

    def encode(self, step: int, addresses: dict[Kernel, int], wide: bool, narrow: bool = True) -> Encoded:
        """Encode the table in memory, for the STEP block at `step`: for decode, for prefill, or for both."""
        chosen: list[tuple[int, Entry]] = []
        for i, e in enumerate(self.entries):
            if narrow or not (e.wide or e.narrow):
                chosen.append((i, e))
            if wide and e.wide:
                chosen.append((i, e.wide))
        n = len(chosen)
        width = round_up(len(PREFIX) + max((len(e.args.slots()) for _, e in chosen), default=0), LINE // 8)
        args = aligned_zeros((n, width), np.int64)
        counters = aligned_zeros((n, LINE // 8), np.int64)
        gates = aligned_zeros((n, LINE // 8), np.int64)
        table = aligned_zeros((n, 4), np.int64)
        for i, (_, entry) in enumerate(chosen):
            args[i, : len(PREFIX)] = step, counters[i].ctypes.data
            entry.args.write(args[i, len(PREFIX) :])
            table[i, :3] = addresses[entry.kernel], args[i].ctypes.data, gates[i].ctypes.data
        return Encoded(
            int(table.ctypes.data),
            [e.label for _, e in chosen],
            [i for i, _ in chosen],
            [e for _, e in chosen],
            (table, args, counters, gates),
        )


@dataclass(frozen=True, slots=True)
class Encoded:
    """A table in memory, with each op's label and entry."""

    address: int
    labels: list[str]
    sources: list[int]
    entries: list[Entry]
    arrays: tuple[NDArray[np.int64], ...]
    """The table's memory; it must outlive the table."""

    def rewrite(self) -> None:
        """Write all arguments again, between two steps. The table stays in place: a late thread of the last step may
        still read it, but no arguments, since the gates are closed."""
        args = self.arrays[1]
        for i, entry in enumerate(self.entries):
            entry.args.write(args[i, len(PREFIX) :])

    def n_ops(self, n_entries: int) -> int:
        """Number of ops of the first entries."""
        return bisect_left(self.sources, n_entries)
