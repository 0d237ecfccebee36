"""Arguments of `kernels/pack.py`."""

from __future__ import annotations

from pyllm.jit.arguments import Address, Arguments, Rows


class Pack(Arguments):
    """Rows of GGUF blocks into panels."""

    source: Rows
    n_rows: int
    columns: int
    target: Address
    n_matrices: int
    source_stride: int
    """Bytes from one matrix to the next, in the source and in the target."""
    target_stride: int
