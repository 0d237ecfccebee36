"""Arguments of `kernels/norm.py`."""

from __future__ import annotations

from pyllm.jit.arguments import Address, Arguments, Rows, Written


class Norm(Arguments):
    """h = x + b (if b), y = norm(h), record of y. Only centred kernels have a bias."""

    x: Rows
    b: Rows | None = None
    h: Written | None = None
    y: Written | None = None
    records: Written | None = None
    weight: Address | None = None
    weight_step: int = 0
    """Columns from one group's weights to the next's; 0: shared."""
    bias: Address | None = None
    bias_step: int = 0
    eps: float
    group: int
    """Columns of a group."""
    n_groups: int
    rows: Address
    """Range."""
    selects_rows: int = 0
    """1 where rows of x and b are selected by the step's `rows`."""
    scratch: Rows
    """Of 4 bytes a column, rounded up to 32 columns."""
    wide_from: Address
    """The first row with a wide record."""
