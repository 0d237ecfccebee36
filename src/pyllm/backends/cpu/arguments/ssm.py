"""Arguments of `kernels/ssm.py`."""

from __future__ import annotations

from pyllm.jit.arguments import Address, Arguments, Rows, Written

MOST_VECTORS = 4
"""Vectors of a head's columns in a work item: what registers hold of a token."""


def scratch_bytes(state_dim: int) -> int:
    """Bytes of scratch of a thread: a state's columns, and zeros for a row of them."""
    return 64 * MOST_VECTORS * (state_dim + 1)


class Scan1(Arguments):
    """Mamba 1's scan over the tokens of each sequence (`program.ops.ssm.SSMScan1`)."""

    x: Rows
    dt: Rows
    b: Rows
    c: Rows
    y: Written
    a: Rows
    """float32 [state_dim, columns]."""
    d: Address
    states: Rows
    """float32 [slots][state_dim, columns]."""
    columns: int
    state_dim: int
    scratch: Rows
    """Of `scratch_bytes`."""


class Scan2(Arguments):
    """Mamba 2's scan over the tokens of each sequence (`program.ops.ssm.SSMScan2`)."""

    x: Rows
    dt: Rows
    b: Rows
    c: Rows
    y: Written
    of_heads: Address
    """float32 [3, n_heads]: a, d, dt_bias."""
    states: Rows
    """float32 [slots][n_heads, state_dim, head_dim]."""
    n_heads: int
    n_groups: int
    head_dim: int
    state_dim: int
    scratch: Rows
    """Of `scratch_bytes`."""
