"""What lowering knows of a program's values: who computes them, and in which forms they are there."""

from __future__ import annotations

from dataclasses import dataclass

from pyllm.backends.cpu.table import View
from pyllm.program import Value


@dataclass(eq=False)
class Node:
    """A value, and the forms that it has been computed in so far."""

    value: Value
    of_output_rows: bool
    """It has one row per output row, not one per token."""
    f32: View | None = None
    q8: View | None = None


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
