"""Arguments of `kernels/streams.py`."""

from __future__ import annotations

from pyllm.jit.arguments import Address, Arguments, Rows, Written


class Mix(Arguments):
    """y's stream j = sum over i of (coefs[t, j, i] + weight[j, i]) * stream i."""

    x: Rows
    x2: Rows | None = None
    """Further streams."""
    y: Written
    coefs: Rows | None = None
    weight: Address | None = None
    """float32 [n_out, n_first + n_second]."""
    n_first: int
    """Streams of x, and of x2."""
    n_second: int
    n_out: int
    width: int
    rows: Address
    """Range."""
    scratch: Rows
    """Of 4 bytes a coefficient."""
