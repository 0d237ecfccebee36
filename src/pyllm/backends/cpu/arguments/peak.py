"""Arguments of `kernels/peak.py`."""

from __future__ import annotations

from pyllm.jit.arguments import Address, Arguments


class MultiplyAdd(Arguments):
    """Rounds of products: CHAINS times 16 each."""

    n_items: int
    n_rounds: int
    """Of an item."""
    spare: Address
    """64 bytes, and 64 more for each thread."""


class Read(Arguments):
    """Every byte of some memory."""

    n_items: int
    item_bytes: int
    """A multiple of 256."""
    spare: Address
    """64 bytes, and 64 more for each thread."""
    memory: Address
