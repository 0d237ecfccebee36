"""Arguments of `kernels/select.py`."""

from __future__ import annotations

from pyllm.jit.arguments import Address, Arguments, Rows, Written


class JoinHeads(Arguments):
    """Each head's columns are those of a, then those of b."""

    a: Rows
    b: Rows
    y: Written
    n_heads: int
    a_dim: int
    b_dim: int
    b_stride: int
    """Bytes from one head's columns of b to the next's; 0: all heads have the same."""
    rows: Address
