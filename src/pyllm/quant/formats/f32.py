"""F32: IEEE single precision, 4 bytes a weight."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.quant.base import QuantFormat

LAYOUT = np.dtype([("x", "<f4")])
assert LAYOUT.itemsize == 4


class F32(QuantFormat):
    name = "F32"
    ggml_type = 0
    block_size = 1
    layout = LAYOUT
    encoder = "floats"

    def decode_blocks(self, blocks: NDArray[Any]) -> NDArray[np.float32]:
        return blocks["x"]
