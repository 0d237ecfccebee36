"""Q8_1: 32 values in 36 bytes (9 bits). v = d * q, q a signed byte. An intermediate of products, not for weights.

Layout: d float16, the scale; s float16, d times the sum of q; qs 32 bytes, in order.
Source: `block_q8_1` in ggml-common.h.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.quant.base import QuantFormat

LAYOUT = np.dtype(
    [
        ("d", "<f2"),
        ("s", "<f2"),
        ("qs", "i1", 32),
    ]
)
assert LAYOUT.itemsize == 36


class Q8_1(QuantFormat):
    name = "Q8_1"
    ggml_type = 9
    block_size = 32
    layout = LAYOUT

    def decode_blocks(self, blocks: NDArray[Any]) -> NDArray[np.float32]:
        return blocks["qs"].astype(np.float32) * blocks["d"].astype(np.float32)[:, None]
