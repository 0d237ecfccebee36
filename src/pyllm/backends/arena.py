"""Work memory shared by buffers that are not alive at the same time."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from typing import Protocol


class Lease(Protocol):
    """A buffer that is alive from step `first` to step `last` of a sequence."""

    n_bytes: int
    address: int
    first: int
    last: int


def arrange(buffers: Iterable[Lease], alignment: int) -> int:
    """Give every buffer an offset (kept as its address), reusing what has ended; returns the bytes of all."""
    free: list[tuple[int, int]] = []  # (offset, bytes), by offset, never adjacent
    alive: list[Lease] = []
    end = 0

    def room(b: Lease) -> int:
        return -(-b.n_bytes // alignment) * alignment

    for b in sorted(buffers, key=lambda b: b.first):
        for old in [a for a in alive if a.last < b.first]:
            alive.remove(old)
            _give(free, old.address, room(old))
        b.address, end = _take(free, room(b), end)
        alive.append(b)
    return end


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
