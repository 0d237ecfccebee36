"""Work memory: the launches of a program in order, and the buffers of values between them.

A buffer's live range is from the first launch that touches it to the last, whether or not a step needs these launches,
so that steps of all shapes share one plan.
"""

from __future__ import annotations

from dataclasses import field

from pyllm.backends.cuda.launch import ALIGNMENT, Launch
from pyllm.backends.plan import memory
from pyllm.backends.plan.memory import Buffer
from pyllm.records import dataclass


@dataclass(frozen=True, slots=True)
class Planned:
    """A launch, and whether it computes output rows: steps without any leave it out."""

    launch: Launch
    of_output_rows: bool


@dataclass
class Work(memory.Work):
    """Launches in the order of their execution, and their buffers."""

    alignment: int = ALIGNMENT
    planned: list[Planned] = field(default_factory=list)

    def add(self, launch: Launch, of_output_rows: bool) -> None:
        for buffer in (*launch.writes, *launch.reads):
            self.touch_next(buffer)
        self.planned.append(Planned(launch, of_output_rows))

    def touch_next(self, buffer: Buffer) -> None:
        """Extend the buffer's live range to the next launch."""
        self.touch(buffer, len(self.planned))

    def hold_from_next(self, buffer: Buffer) -> None:
        """Keep what the next launch, or an earlier one, writes to the buffer until the next step."""
        self.hold(buffer, len(self.planned))

    @property
    def kept(self) -> list[Buffer]:
        """Buffers that must be zero at first."""
        return [b for b in self.buffers if b.keep]
