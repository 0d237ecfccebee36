"""Q8_K: 256 values in 292 bytes (9.125 bits). v = d * q, q a signed byte. An intermediate of products, not for weights.

Layout: d float32, the scale; qs 256 bytes, in order; bsums 16 times int16, sums of 16 of q each.
Source: `block_q8_K` and `dequantize_row_q8_K` in ggml.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.quant.base import QuantFormat

LAYOUT = np.dtype(
    [
        ("d", "<f4"),
        ("qs", "i1", 256),
        ("bsums", "<i2", 16),
    ]
)
assert LAYOUT.itemsize == 292


class Q8_K(QuantFormat):
    name = "Q8_K"
    ggml_type = 15
    block_size = 256
    layout = LAYOUT

    def decode_blocks(self, blocks: NDArray[Any]) -> NDArray[np.float32]:
        return blocks["qs"].astype(np.float32) * blocks["d"][:, None]
