"""Work memory: live ranges of buffers in a plan's steps, and one arena for all."""

from __future__ import annotations

from dataclasses import dataclass, field

from pyllm.backends.plan import arena

_END = 1 << 40
"""After every step."""


@dataclass(eq=False, slots=True)
class Buffer:
    """A buffer, live from the step that first writes it to the step that last reads it."""

    n_bytes: int
    address: int = 0
    outside: bool = False
    """Placed elsewhere (weights, KV cache, results for the caller): not part of the arena."""
    keep: bool = False
    """Kept from run to run, and zero at first; shared with no other buffer."""
    first: int = -1
    last: int = -1


@dataclass
class Work:
    """Buffers with their live ranges; each starts at a multiple of `alignment` bytes."""

    alignment: int
    buffers: list[Buffer] = field(default_factory=list)

    def touch(self, buffer: Buffer, at: int) -> None:
        """Extend the buffer's live range to step `at`."""
        if buffer.first < 0:
            buffer.first = 0 if buffer.keep else at
            if not buffer.outside:
                self.buffers.append(buffer)
        buffer.first, buffer.last = min(buffer.first, at), max(buffer.last, _END if buffer.keep else at)

    def hold(self, buffer: Buffer, at: int) -> None:
        """Keep the buffer's content until the next run writes it."""
        self.touch(buffer, at)
        buffer.last = _END

    def arrange(self) -> int:
        """Give every buffer an offset (kept as its address), sharing memory by live range; returns the total bytes."""
        return arena.arrange(self.buffers, self.alignment)

    def place(self, base: int) -> None:
        """Turn offsets into addresses."""
        for b in self.buffers:
            b.address += base
