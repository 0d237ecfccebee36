"""Pages of the KV cache and slots of states as bytes, for executables that hold them in the host's memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pyllm.errors import BackendError


def check_size(data: NDArray[np.uint8], n_bytes: int, what: str = "page") -> None:
    """Raise BackendError unless `data` has the size of a page, or of a slot."""
    if data.shape != (n_bytes,) or data.dtype != np.uint8:
        raise BackendError(f"a {what} has {n_bytes} bytes, not {data.nbytes}; it is of another model")


def joined(blocks: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """A copy of a page or slot that lies in several blocks of memory, uint8 [their bytes]."""
    return np.concatenate(blocks) if blocks else np.empty(0, np.uint8)


def spread(data: NDArray[np.uint8], blocks: Sequence[NDArray[np.uint8]], what: str = "page") -> None:
    """Write what `joined` gave into blocks of the same sizes. Raises BackendError where they are others."""
    check_size(data, sum(len(block) for block in blocks), what)
    start = 0
    for block in blocks:
        block[:] = data[start : start + len(block)]
        start += len(block)
