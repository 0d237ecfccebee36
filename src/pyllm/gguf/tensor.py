"""What a tensor in a file is: a name, a shape, a format, and the bytes where they lie in the memory map."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor, still quantized.

    `shape` is outermost first: a matrix is (rows, columns), the experts of a layer (experts, rows, columns); the
    last axis is the one that blocks run along (ggml's `ne[0]`). `format` is the format's name as ggml writes it
    ("Q4_K"). `data` is a flat, read-only uint8 view of the mapped file, `n_bytes` long, no copy.
    """

    name: str
    shape: tuple[int, ...]
    format: str
    data: NDArray[np.uint8]

    @property
    def n_elements(self) -> int:
        n = 1
        for d in self.shape:
            n *= d
        return n

    @property
    def n_bytes(self) -> int:
        return self.data.nbytes
