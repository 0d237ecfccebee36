"""The table that a step walks: kernels with their arguments, and the work memory that their values share.

While a table is built, nothing has an address: entries keep their arguments, which are asked once memory is there.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pyllm.backends.plan.memory import Buffer, Work
from pyllm.jit.arguments import PREFIX, Arguments
from pyllm.jit.compiler import Kernel
from pyllm.jit.memory import aligned_zeros

LINE = 64
"""Bytes of a cache line; everything starts at one."""

FIRST_WIDE, NEVER, NARROW, WIDE = 12, 14, 16, 18
"""Slots of the STEP block: the first token with a wide record, a number that no row reaches, and the ranges (first,
count) of the tokens without and with wide records."""
FIRST_WIDE_ROW, NARROW_ROWS, WIDE_ROWS = 20, 22, 24
"""The same for the rows whose logits are wanted."""


def round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


@dataclass(frozen=True, slots=True)
class View:
    """Rows in a buffer: where the first starts and how many bytes are between them."""

    buffer: Buffer
    ld: int
    offset: int = 0

    @property
    def address(self) -> int:
        return self.buffer.address + self.offset


@dataclass(eq=False, slots=True)
class Scratch:
    """Memory that each thread has for itself: `ld` bytes, as many as the kernel that needs most."""

    address: int = 0
    ld: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """One op of the table: a kernel, its arguments, and what a profile calls it."""

    kernel: Kernel
    args: Arguments
    label: str
    wide: Entry | None = None
    """Does the same for the tokens with wide records."""
    narrow: bool = False
    """Only for the tokens without; the others have it done elsewhere."""


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
        """Append an entry. Buffers live as long as they are among arguments."""
        for written in (True, False):
            for place in [*args.places(written=written), *(wide.args.places(written=written) if wide else ())]:
                if isinstance(place, View | Buffer):
                    self.touch(place.buffer if isinstance(place, View) else place, len(self.entries))
        self.entries.append(Entry(kernel, args, label, wide, narrow))

    def touch(self, buffer: Buffer, at: int) -> None:
        """The buffer is used by entry `at`."""
        self.work.touch(buffer, at)

    def need_scratch(self, n_bytes: int) -> None:
        """Each thread gets at least so much."""
        self.scratch.ld = max(self.scratch.ld, round_up(n_bytes, LINE))

    def arrange(self) -> int:
        """Give every buffer an offset, reusing what has ended; returns the bytes of all."""
        return self.work.arrange()

    def place(self, base: int, scratch: int) -> None:
        """Turn offsets into addresses."""
        self.work.place(base)
        self.scratch.address = scratch

    def kernels(self) -> list[Kernel]:
        return [k for e in self.entries for k in ([e.kernel, e.wide.kernel] if e.wide else [e.kernel])]

    def encode(self, step: int, addresses: dict[Kernel, int], wide: bool, narrow: bool = True) -> Encoded:
        """The table in memory, for the STEP block at `step`: with what computes wide tokens, narrow ones, or both."""
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
    """A table in memory: what each op is called, and the entry that it comes from."""

    address: int
    labels: list[str]
    sources: list[int]
    entries: list[Entry]
    arrays: tuple[NDArray[np.int64], ...]
    """What the table consists of; lives as long as it."""

    def rewrite(self) -> None:
        """Ask for all arguments again, between two steps. The table stays where it is: a thread that is late in a step
        that is over still reads it, but no arguments, since its gates are closed."""
        args = self.arrays[1]
        for i, entry in enumerate(self.entries):
            entry.args.write(args[i, len(PREFIX) :])

    def n_ops(self, n_entries: int) -> int:
        """How many ops compute the first entries."""
        return bisect_left(self.sources, n_entries)
