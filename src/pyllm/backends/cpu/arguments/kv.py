"""Arguments of `kernels/kv.py`."""

from __future__ import annotations

from pyllm.jit.arguments import Address, Arguments, Rows


class Store(Arguments):
    """q = rope(norm(q)) in place, rope(norm(k)) and v into the cache, which is laid out by `attention.KVLayout`."""

    q: Rows
    k: Rows | None
    v: Rows | None
    """Columns of one buffer, perhaps. Without rotation and norms q is not touched. None: keys and values are another
    op's, and only queries are rotated."""
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
    table: Rows | None = None
    half: int = 0
    """Pairs of columns that are rotated; 0: none."""
    interleaved: int = 0
    q_weight: Address | None = None
    q_weight_stride: int = 0
    """Bytes from one head's weights to the next's; 0: shared."""
    q_eps: float = -1.0
    """Negative: no norm."""
    k_weight: Address | None = None
    k_weight_stride: int = 0
    k_eps: float = -1.0
    scratch: Rows
    """Of 16 padded heads and 1024 bytes."""
