"""Q2_0: 64 weights in 18 bytes (2.25 bits). w = d * (q - 1), q of 2 bits.

Layout: d float16; qs 16 bytes, 2 bits a weight, in order from the lowest bits upwards.
Source: `block_q2_0` and `dequantize_row_q2_0` in ggml.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.quant.base import QuantFormat
from pyllm.quant.bits import planes

LAYOUT = np.dtype(
    [
        ("d", "<f2"),
        ("qs", "u1", 16),
    ]
)
assert LAYOUT.itemsize == 18


class Q2_0(QuantFormat):
    name = "Q2_0"
    ggml_type = 42
    block_size = 64
    layout = LAYOUT
    encoder = "ternary"

    def decode_blocks(self, blocks: NDArray[Any]) -> NDArray[np.float32]:
        q = planes(blocks["qs"], 1, 2).reshape(-1, 64)
        return (q.astype(np.float32) - np.float32(1)) * blocks["d"].astype(np.float32)[:, None]
