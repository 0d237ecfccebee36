"""Arguments of `kernels/elementwise.py`."""

from __future__ import annotations

from pyllm.jit.arguments import Address, Arguments, Rows, Written


class Elementwise(Arguments):
    """y = op(x, b, factor)."""

    x: Rows
    b: Rows
    """x where there is none."""
    y: Written
    factor: float = 0.0
    columns: int
    rows: Address
    """Range."""
    selects_rows: int = 0
    """1 where rows of x and b are selected by the step's `rows`."""


class Gated(Arguments):
    """y = f(gate, up), and its quantized activations (records)."""

    gate: Rows
    up: Rows
    y: Written | None = None
    records: Written | None = None
    columns: int
    rows: Address
    """Range."""
    scratch: Rows
    """Of two rows, each rounded up to 32 columns."""
    wide_from: Address
    """The first row with a wide record."""
    spread: int = 1
    """Columns that one number of gate applies to."""
    limit: float = 0.0
    """Of an activation that has one."""


class XIELU(Arguments):
    """y = alpha_p x^2 + beta x for x > 0, else alpha_n (expm1(min(x, eps)) - x) + beta x."""

    x: Rows
    y: Written
    columns: int
    rows: Address
    """Range."""
    alpha_n: float
    alpha_p: float
    beta: float
    eps: float


class Quantize(Arguments):
    """Quantized activations (records) of rows."""

    x: Rows
    records: Written
    columns: int
    rows: Address
    """Range."""
    selects_rows: int = 0
    """1 where rows of x are selected by the step's `rows`."""
    wide_from: Address
    """The first row with a wide record."""
