"""Arguments of `kernels/statistics.py`."""

from __future__ import annotations

from pyllm.jit.arguments import Address, Arguments, Rows


class SumSquares(Arguments):
    """Each group's sums of squares are added to what is there."""

    x: Rows
    columns: int
    ranges: Address
    """One range for each group."""
    n_groups: int
    x_stride: int
    """Bytes from one group's columns to the next's; of ranges likewise."""
    range_stride: int
    sums: Address
    """float32 [groups, columns up to the next multiple of 16]."""
    errors: Address
    """The sums' rounding errors, likewise."""
    counts: Address
    """Rows, int64 [groups]."""
