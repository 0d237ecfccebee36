"""Values during lowering: their buffers by activation dtype, and ranges of entries."""

from __future__ import annotations

from pyllm.backends.cpu.table import View
from pyllm.program import Value
from pyllm.records import dataclass


@dataclass(eq=False)
class Node:
    """A value, and its buffers by activation dtype, as far as computed."""

    value: Value
    of_output_rows: bool
    """It has one row per output row, not one per token."""
    f32: View | None = None
    q8: View | None = None


@dataclass(frozen=True)
class Range:
    """The entries of a stage, and the entry after which each value to send is complete."""

    start: int
    stop: int
    complete: dict[int, int]
    """By a value's id: the number of entries after which it is complete."""


@dataclass(frozen=True)
class HostRows:
    """Rows of a table in a format without a kernel: decoded before each step, into `view`."""

    table: str
    of_positions: bool
    """By position, not by token."""
    scale: float
    view: View
