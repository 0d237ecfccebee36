"""Arguments of `kernels/dot.py`."""

from __future__ import annotations

from pyllm.jit.arguments import Address, Arguments, Rows, Written


class Dot(Arguments):
    """y[g] = sum of a * b over the columns of a group."""

    a: Rows
    b: Rows
    y: Written
    group: int
    """Columns of a group."""
    n_groups: int
    rows: Address
    """Range."""
