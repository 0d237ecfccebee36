"""What lowering knows of a program's values: who computes and reads them, and in which forms they are there."""

from __future__ import annotations

from dataclasses import dataclass, field

from pyllm.backends.cpu.table import View
from pyllm.program import Op, Value


@dataclass(frozen=True, slots=True, kw_only=True)
class Given(Op):
    """A value of another device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent(Op):
    """Reads a value for another device, or for the caller. Computes nothing: `out` is `x`."""

    x: Value


@dataclass(eq=False)
class Node:
    """A value: the op that computes it, who reads it, and the forms that it has been computed in so far."""

    op: Op
    picked: bool
    """Its rows are the wanted ones, not all tokens."""
    readers: list[Op] = field(default_factory=list)
    f32: View | None = None
    q8: View | None = None

    @property
    def only_reader(self) -> Op | None:
        return self.readers[0] if len(self.readers) == 1 else None


@dataclass(frozen=True)
class Range:
    """The entries of a stage, and where each of its values to send is complete."""

    start: int
    stop: int
    complete: dict[int, int]
    """By a value's id: the number of entries that have run when it is there."""


@dataclass(frozen=True)
class HostRows:
    """Rows of a token table in a format without a kernel: decoded before each step, into `view`."""

    table: str
    scale: float
    view: View
