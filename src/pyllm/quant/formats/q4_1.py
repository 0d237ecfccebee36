"""Q4_1: 32 weights in 20 bytes (5 bits). w = d * q + m, q of 4 bits.

Layout: d float16, the scale; m float16, the least weight; qs 16 bytes. Nibbles: byte i
of `qs` holds weight i below and weight i + 16 above.
Source: `block_q4_1` in ggml-common.h.
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
        ("m", "<f2"),
        ("qs", "u1", 16),
    ]
)
assert LAYOUT.itemsize == 20


class Q4_1(QuantFormat):
    name = "Q4_1"
    ggml_type = 3
    block_size = 32
    layout = LAYOUT
    encoder = "legacy"

    def decode_blocks(self, blocks: NDArray[Any]) -> NDArray[np.float32]:
        d = blocks["d"].astype(np.float32)[:, None, None]
        m = blocks["m"].astype(np.float32)[:, None, None]
        return d * planes(blocks["qs"], 16, 4).astype(np.float32) + m
