"""Work memory: the launches of a program in order, and where the values between them lie.

A buffer lives from the first launch that touches it to the last, whether or not a step needs these launches, so that
steps of all shapes share one plan.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pyllm.backends import arena
from pyllm.backends.cuda.launch import ALIGNMENT, Buffer, Launch

_END = 1 << 40
"""After every launch."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A launch, and whether its rows are the wanted ones: steps that want none leave it out."""

    launch: Launch
    by_row: bool


@dataclass
class Work:
    """Launches in the order of their execution, and their buffers."""

    planned: list[Planned] = field(default_factory=list)
    buffers: list[Buffer] = field(default_factory=list)

    def add(self, launch: Launch, by_row: bool) -> None:
        for buffer in (*launch.writes, *launch.reads):
            self.touch(buffer)
        self.planned.append(Planned(launch, by_row))

    def touch(self, buffer: Buffer) -> None:
        """The buffer is used by the next launch."""
        at = len(self.planned)
        if buffer.first < 0:
            buffer.first = 0 if buffer.keep else at
            if not buffer.outside:
                self.buffers.append(buffer)
        buffer.last = max(buffer.last, _END if buffer.keep else at)

    def hold(self, buffer: Buffer) -> None:
        """What is written to the buffer stays there until the next step writes it again."""
        self.touch(buffer)
        buffer.last = _END

    @property
    def kept(self) -> list[Buffer]:
        """Those that are to be zero at first."""
        return [b for b in self.buffers if b.keep]

    def arrange(self) -> int:
        """Give every buffer an offset (kept as its address), reusing what has ended; returns the bytes of all."""
        return arena.arrange(self.buffers, ALIGNMENT)

    def place(self, base: int) -> None:
        """Turn offsets into addresses."""
        for b in self.buffers:
            b.address += base
