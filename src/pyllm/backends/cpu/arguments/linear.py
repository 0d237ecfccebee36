"""Arguments of `kernels/linear.py`."""

from __future__ import annotations

from pyllm.jit.arguments import Address, Arguments, Rows, Written


class Linear(Arguments):
    """y = x W.T + bias + residual; each group computes the rows of its range."""

    w: Address
    n_panels: int
    columns: int
    x: Rows
    y: Written
    bias: Address | None = None
    residual: Address | None = None
    """Laid out like y."""
    ranges: Address
    """One range for each group."""
    n_groups: int = 1
    w_stride: int = 0
    """Bytes from one group's matrix to the next's; of biases likewise."""
    bias_stride: int = 0
    x_stride: int = 0
    """Bytes from one group's columns to the next's, in x and in y; 0: groups share columns, and have rows."""
    y_stride: int = 0
    range_stride: int = 16
    """Bytes from one group's range to the next's; 0: groups have the same rows."""
