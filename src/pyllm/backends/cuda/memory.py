"""Work memory: the launches of a program in order, and where the values between them lie.

A buffer lives from the first launch that touches it to the last, whether or not a step needs these launches, so that
steps of all shapes share one plan.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pyllm.backends.cuda.launch import ALIGNMENT, Launch
from pyllm.backends.plan import memory
from pyllm.backends.plan.memory import Buffer


@dataclass(frozen=True, slots=True)
class Planned:
    """A launch, and whether its rows are the wanted ones: steps that want none leave it out."""

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
        """The buffer is used by the next launch."""
        self.touch(buffer, len(self.planned))

    def hold_from_next(self, buffer: Buffer) -> None:
        """What the next launch, or one before it, writes to the buffer stays there until the next step."""
        self.hold(buffer, len(self.planned))

    @property
    def kept(self) -> list[Buffer]:
        """Those that are to be zero at first."""
        return [b for b in self.buffers if b.keep]
