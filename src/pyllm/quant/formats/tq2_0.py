"""TQ2_0: 256 weights in 66 bytes (2.0625 bits). w = d * (q - 1), q of 2 bits.

Layout: qs 64 bytes: two runs of 32 bytes, each of which holds 128 weights; byte i of a run has weights i, 32 + i, 64
+ i and 96 + i, from its lowest bits upwards; d float16.
Source: `block_tq2_0` and `dequantize_row_tq2_0` in ggml.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.quant.base import QuantFormat
from pyllm.quant.bits import planes

LAYOUT = np.dtype(
    [
        ("qs", "u1", 64),
        ("d", "<f2"),
    ]
)
assert LAYOUT.itemsize == 66


class TQ2_0(QuantFormat):
    name = "TQ2_0"
    ggml_type = 35
    block_size = 256
    layout = LAYOUT
    encoder = "ternary"

    def decode_blocks(self, blocks: NDArray[Any]) -> NDArray[np.float32]:
        q = planes(blocks["qs"], 32, 2).reshape(-1, 256)
        return blocks["d"].astype(np.float32)[:, None] * (q.astype(np.float32) - np.float32(1))
