"""Pages of the KV cache as bytes, for executables whose caches are in the host's memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pyllm.errors import BackendError


def check_size(data: NDArray[np.uint8], page_bytes: int) -> None:
    """Raise BackendError unless `data` has a page's size."""
    if data.shape != (page_bytes,) or data.dtype != np.uint8:
        raise BackendError(f"a page has {page_bytes} bytes, not {data.nbytes}; it is of another model")


def joined(blocks: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """A copy of a page that lies in several blocks of memory, uint8 [page_bytes]."""
    return np.concatenate(blocks) if blocks else np.empty(0, np.uint8)


def spread(data: NDArray[np.uint8], blocks: Sequence[NDArray[np.uint8]]) -> None:
    """Write what `joined` gave into blocks of the same sizes. Raises BackendError where they are others."""
    check_size(data, sum(len(block) for block in blocks))
    start = 0
    for block in blocks:
        block[:] = data[start : start + len(block)]
        start += len(block)
