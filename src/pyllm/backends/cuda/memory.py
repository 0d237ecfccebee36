"""Work memory: the launches of a program in order, and where the values between them lie.

A buffer lives from the first launch that touches it to the last, whether or not a step needs these launches, so that
steps of all shapes share one plan.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field

from pyllm.backends.cuda.launch import ALIGNMENT, Buffer, Launch, round_up

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
        free: list[tuple[int, int]] = []  # (offset, bytes), by offset, never adjacent
        alive: list[Buffer] = []
        end = 0
        for b in sorted(self.buffers, key=lambda b: b.first):
            for old in [a for a in alive if a.last < b.first]:
                alive.remove(old)
                _give(free, old.address, _room(old))
            b.address, end = _take(free, _room(b), end)
            alive.append(b)
        return end

    def place(self, base: int) -> None:
        """Turn offsets into addresses."""
        for b in self.buffers:
            b.address += base


def _room(buffer: Buffer) -> int:
    return max(ALIGNMENT, round_up(buffer.n_bytes, ALIGNMENT))


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
