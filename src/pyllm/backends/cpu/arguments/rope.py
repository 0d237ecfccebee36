"""Arguments of `kernels/rope.py`."""

from __future__ import annotations

from pyllm.jit.arguments import Address, Arguments, Rows, Written


class Table(Arguments):
    """Cosines and sines of every token of a step."""

    inv_freq: Address
    """float32 [half]."""
    half: int
    mscale: float
    table: Written


class Rotate(Arguments):
    """y = rope(norm(x)) of each head, either of them left out where there is none. y may be x."""

    x: Rows
    y: Written
    n_heads: int
    head_dim: int
    table: Rows | None = None
    half: int = 0
    """Pairs of columns that are rotated; 0: none."""
    interleaved: int = 0
    weight: Address | None = None
    weight_stride: int = 0
    """Bytes from one head's weights to the next's; 0: shared."""
    eps: float = -1.0
    """Negative: no norm."""
