"""Arguments of `kernels/position.py`."""

from __future__ import annotations

from pyllm.jit.arguments import Address, Arguments, Rows, Written


class Scale(Arguments):
    """y[t] = x[t] * factors[min((positions[t] + offset) // length, n_factors - 1)]."""

    x: Rows
    y: Written
    columns: int
    factors: Address
    """float32."""
    n_factors: int
    length: int
    offset: int
