"""Arguments of `kernels/wide.py`."""

from __future__ import annotations

from pyllm.jit.arguments import Address, Arguments, Rows, Written


class Wide(Arguments):
    """y = x W.T + bias + residual, or the activation of its halves (prefill path). x has bfloat16 records."""

    w: Address
    n_panels: int
    columns: int
    x: Rows
    y: Written
    bias: Address | None = None
    residual: Address | None = None
    """Laid out like y."""
    rows: Address
    """Range."""
    scratch: Rows
    """Of WIDE_SCRATCH or GATED_SCRATCH bytes."""
