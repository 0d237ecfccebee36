"""F16: IEEE half precision, 2 bytes a weight."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.quant.base import QuantFormat

LAYOUT = np.dtype([("x", "<f2")])
assert LAYOUT.itemsize == 2


class F16(QuantFormat):
    name = "F16"
    ggml_type = 1
    block_size = 1
    layout = LAYOUT
    encoder = "floats"

    def decode_blocks(self, blocks: NDArray[Any]) -> NDArray[np.float32]:
        return blocks["x"].astype(np.float32)
