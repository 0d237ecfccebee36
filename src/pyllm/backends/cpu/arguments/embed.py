"""Arguments of `kernels/embed.py`."""

from __future__ import annotations

from pyllm.jit.arguments import Address, Arguments, Written


class Embed(Arguments):
    """y[t] = table[tokens[t]] * scale, or table[positions[t]] * scale."""

    table: Address
    """GGUF blocks."""
    y: Written
    columns: int
    scale: float
    of_positions: int = 0
