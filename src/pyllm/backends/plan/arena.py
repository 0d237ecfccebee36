"""An arena: work memory shared by buffers whose live ranges do not overlap."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np


class Lease(Protocol):
    """A buffer with the live range `first` to `last`, in steps of a plan."""

    n_bytes: int
    address: int
    first: int
    last: int


def arrange(buffers: Iterable[Lease], alignment: int) -> int:
    """Give every buffer an offset (kept as its address); returns the total bytes.

    The largest first, each into the smallest gap between those that are live at the same time ("greedy by size" of
    arXiv:2001.03288): for today's models that is as little as is live at once.
    """
    leases = sorted(buffers, key=lambda b: (-b.n_bytes, b.first))
    first, last = (np.array([getattr(b, name) for b in leases], np.int64) for name in ("first", "last"))
    sizes = np.array([-(-b.n_bytes // alignment) * alignment for b in leases], np.int64)
    starts = np.zeros(len(leases), np.int64)
    for i, lease in enumerate(leases):
        beside = np.flatnonzero((first[:i] <= lease.last) & (last[:i] >= lease.first))
        beside = beside[np.argsort(starts[beside], kind="stable")]
        starts[i] = _gap(starts[beside], (starts + sizes)[beside], int(sizes[i]))
        lease.address = int(starts[i])
    return int((starts + sizes).max(initial=0))


def _gap(starts: np.ndarray, ends: np.ndarray, size: int) -> int:
    """Where the smallest gap of at least `size` bytes begins, between pieces in the order of their starts."""
    reached = np.maximum.accumulate(np.concatenate([[0], ends]))
    gaps = starts - reached[:-1]
    fits = np.flatnonzero(gaps >= size)
    return int(reached[fits[np.argmin(gaps[fits])]] if len(fits) else reached[-1])
