"""Work memory: live ranges of buffers between the steps of a plan, and one arena that they share."""

from __future__ import annotations

from dataclasses import dataclass, field

from pyllm.backends.plan import arena

_END = 1 << 40
"""After every step."""


@dataclass(eq=False, slots=True)
class Buffer:
    """Memory from the step of a plan that first writes it to the one that last reads it."""

    n_bytes: int
    address: int = 0
    outside: bool = False
    """Placed by somebody else (weights, KV, what a caller gets): live ranges do not move it."""
    keep: bool = False
    """Its users' own from one run to the next, and zero at first; shared with nothing."""
    first: int = -1
    last: int = -1


@dataclass
class Work:
    """Buffers by their live ranges; each starts at a multiple of `alignment` bytes."""

    alignment: int
    buffers: list[Buffer] = field(default_factory=list)

    def touch(self, buffer: Buffer, at: int) -> None:
        """The buffer is used by step `at`."""
        if buffer.first < 0:
            buffer.first = 0 if buffer.keep else at
            if not buffer.outside:
                self.buffers.append(buffer)
        buffer.first, buffer.last = min(buffer.first, at), max(buffer.last, _END if buffer.keep else at)

    def hold(self, buffer: Buffer, at: int) -> None:
        """What is written to the buffer stays there until the next run writes it again."""
        self.touch(buffer, at)
        buffer.last = _END

    def arrange(self) -> int:
        """Give every buffer an offset (kept as its address), reusing what has ended; returns the bytes of all."""
        return arena.arrange(self.buffers, self.alignment)

    def place(self, base: int) -> None:
        """Turn offsets into addresses."""
        for b in self.buffers:
            b.address += base
