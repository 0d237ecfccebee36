"""Numbers in words."""

from __future__ import annotations

import re

_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"([+-]?)((?:(?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|ms|s|m|h))+)", re.ASCII)
_PART = re.compile(r"([\d.]+)([a-zµ]+)", re.ASCII)


def size(n_bytes: float) -> str:
    """Bytes in words: `93.8 MiB`."""
    for unit in ("B", "KiB", "MiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:,.2f} GiB"


def seconds(text: str) -> float | None:
    """Seconds of a duration as Go writes them, "1h30m"; a number alone means seconds. None where it is none."""
    text = text.strip()[:60]
    if re.fullmatch(r"[+-]?\d+(\.\d+)?", text, re.ASCII):
        return float(text)
    match = _DURATION.fullmatch(text)
    if match is None:
        return None
    total = sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(match[2]))
    return -total if match[1] == "-" else total
