"""Arguments of `kernels/delta.py`."""

from __future__ import annotations

from pyllm.jit.arguments import Arguments, Rows, Written

N_OF_ROWS = 3
"""Numbers for each row of a state, in scratch."""


class DeltaRule(Arguments):
    """The gated delta rule over the tokens of each sequence (`program.ops.delta`)."""

    q: Rows
    k: Rows
    v: Rows
    decay: Rows
    """Logarithms: one number for each head, or, for kernels by row, for each row of its state."""
    beta: Rows
    y: Written
    states: Rows
    """float32 [slots][n_heads, key_dim, value_dim]."""
    n_heads: int
    n_key_heads: int
    tiled: int
    """1 where head h reads key head h % n_key_heads, 0 where it reads h * n_key_heads // n_heads."""
    key_dim: int
    value_dim: int
    scale: float
    scratch: Rows
    """Of `heads.scratch_bytes`, with N_OF_ROWS."""
