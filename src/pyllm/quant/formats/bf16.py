"""BF16: the upper half of an IEEE single, 2 bytes a weight."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.quant.base import QuantFormat

LAYOUT = np.dtype([("x", "<u2")])
assert LAYOUT.itemsize == 2


class BF16(QuantFormat):
    name = "BF16"
    ggml_type = 30
    block_size = 1
    layout = LAYOUT
    encoder = "floats"

    def decode_blocks(self, blocks: NDArray[Any]) -> NDArray[np.float32]:
        return (blocks["x"].astype(np.uint32) << np.uint32(16)).view(np.float32)
