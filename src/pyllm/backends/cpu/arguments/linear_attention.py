"""Arguments of `kernels/linear_attention.py`."""

from __future__ import annotations

from pyllm.jit.arguments import Address, Arguments, Rows, Written

N_OF_ROWS = 2
"""Numbers for each row of a state, in scratch."""


class LinearAttention(Arguments):
    """Linear attention over the tokens of each sequence (`program.ops.linear_attention`)."""

    q: Rows
    k: Rows
    v: Rows
    decay: Rows | None = None
    """Logarithms, a number for each row of the states; of kernels by row."""
    decays: Address | None = None
    """Logarithms, a number for each head; of others."""
    erase: Rows | None = None
    insert: Rows | None = None
    y: Written
    states: Rows
    """float32 [slots][n_heads, key_dim, value_dim]."""
    n_heads: int
    n_key_heads: int
    key_dim: int
    value_dim: int
    scale: float
    scratch: Rows
    """Of `heads.scratch_bytes`, with N_OF_ROWS."""
