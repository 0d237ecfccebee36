"""Q1_0: 128 weights in 18 bytes (1.125 bits). w = d where a weight's bit is 1, else -d.

Layout: d float16; qs 16 bytes, one bit a weight, in order from the lowest bit upwards.
Source: `block_q1_0` and `dequantize_row_q1_0` in ggml.
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


class Q1_0(QuantFormat):
    name = "Q1_0"
    ggml_type = 41
    block_size = 128
    layout = LAYOUT
    encoder = "ternary"

    def decode_blocks(self, blocks: NDArray[Any]) -> NDArray[np.float32]:
        bits = planes(blocks["qs"], 1, 1).reshape(-1, 128)
        d = blocks["d"].astype(np.float32)[:, None]
        return np.where(bits, d, -d)
