"""Q8_0: 32 weights in 34 bytes (8.5 bits). w = d * q, q a signed byte.

Layout: d float16, the scale; qs 32 bytes, in order.
Source: `block_q8_0` in ggml-common.h.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.quant.base import QuantFormat

LAYOUT = np.dtype(
    [
        ("d", "<f2"),
        ("qs", "i1", 32),
    ]
)
assert LAYOUT.itemsize == 34


class Q8_0(QuantFormat):
    name = "Q8_0"
    ggml_type = 8
    block_size = 32
    layout = LAYOUT
    encoder = "legacy"

    def decode_blocks(self, blocks: NDArray[Any]) -> NDArray[np.float32]:
        return blocks["qs"].astype(np.float32) * blocks["d"].astype(np.float32)[:, None]
