"""Arguments of `kernels/conv.py`."""

from __future__ import annotations

from pyllm.jit.arguments import Address, Arguments, Rows, Written


class ShortConv(Arguments):
    """y[t, c] = sum over j of x[t - taps + 1 + j, c] * weight[j, c] + bias[c], over the tokens of each sequence."""

    x: Rows
    y: Written
    weight: Rows
    """float32 [taps, columns]."""
    bias: Address | None = None
    columns: int
    states: Rows
    """The rows before a sequence's tokens: float32 [slots][taps - 1, columns]."""
