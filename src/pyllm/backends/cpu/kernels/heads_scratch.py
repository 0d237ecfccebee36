"""Scratch of kernels whose states are matrices of heads (`kernels/heads.py`)."""

from __future__ import annotations

ONE_TOKEN, TOKENS = 8, 2
"""Vectors of a work item: where every sequence has one token, so that much of a row is read at once; and where states
stay in scratch, so that they fit into the first-level cache."""


def padded_bytes(n_rows: int) -> int:
    """Bytes of a number for each row, to a multiple of 16 rows."""
    return 4 * (-(-n_rows // 16) * 16)


def scratch_bytes(key_dim: int, n_of_rows: int) -> int:
    """Bytes of scratch of a thread: sums and zeros of a row's vectors, `n_of_rows` numbers for each row of a state, and
    a state's columns."""
    return 64 * (TOKENS * key_dim + 2 * ONE_TOKEN) + n_of_rows * padded_bytes(key_dim)
