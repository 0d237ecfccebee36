"""Arguments of `kernels/delta.py`."""

from __future__ import annotations

from pyllm.jit.arguments import Arguments, Rows, Written

ONE_TOKEN, TOKENS = 8, 2
"""Vectors of a work item: where every sequence has one token, so that much of a row is read at once; and where states
stay in scratch, so that they fit into the first-level cache."""


def padded_bytes(n_rows: int) -> int:
    """Bytes of a number for each row, to a multiple of 16 rows."""
    return 4 * (-(-n_rows // 16) * 16)


def scratch_bytes(key_dim: int) -> int:
    """Bytes of scratch of a thread: sums and zeros of a row's vectors, three numbers for each row of a state, and a
    state's columns."""
    return 64 * (TOKENS * key_dim + 2 * ONE_TOKEN) + 3 * padded_bytes(key_dim)


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
    """Of `scratch_bytes`."""
