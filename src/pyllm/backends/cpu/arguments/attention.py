"""Arguments of `kernels/attention.py`."""

from __future__ import annotations

from pyllm.jit.arguments import Address, Arguments, Rows, Written


class Attend(Arguments):
    """Attention over a layer's cache."""

    q: Rows
    y: Written
    cache: Address
    page_bytes: int
    page_size: int
    """Positions of a page."""
    n_kv: int
    group: int
    """Query heads of a kv head."""
    head_dim: int
    v_head_dim: int
    head_bytes: int
    """Bytes of a head in a page, and of its keys."""
    key_bytes: int
    scale: float
    window: int
    reach: int
    """Number of what a token sees, in the order of `REACHES`."""
    softcap: float
    """0: none."""
    slopes: Address | None = None
    """float32 [heads]."""
    biases: Rows | None = None
    """float32 [heads][2 far + 33], from 16 positions before `far` on."""
    far: int = 0
    sinks: Address | None = None
    """float32 [heads]."""
    scratch: Rows
    cap_rows: int
    """Rows that a thread's scratch has room for."""
    parts: Address
    """float32 rows of the kernel's width and 16 more: `group` for each part of a generated token and kv head."""
    tickets: Address
    """int64 for each generated token and kv head, zero before and after."""
