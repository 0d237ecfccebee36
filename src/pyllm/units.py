"""Numbers in words."""

from __future__ import annotations


def size(n_bytes: float) -> str:
    """Bytes in words: `93.8 MiB`."""
    for unit in ("B", "KiB", "MiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:,.2f} GiB"
