"""Q5_1: 32 weights in 24 bytes (6 bits). w = d * q + m, q of 5 bits.

Layout: d float16, the scale; m float16, the least weight; qh 4 bytes, bit i (of the
little-endian uint32) the fifth bit of weight i; qs 16 bytes, the low four bits: byte i holds those of weight i below
and of weight i + 16 above.
Source: `block_q5_1` in ggml-common.h.
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
        ("qh", "u1", 4),
        ("qs", "u1", 16),
    ]
)
assert LAYOUT.itemsize == 24


class Q5_1(QuantFormat):
    name = "Q5_1"
    ggml_type = 7
    block_size = 32
    layout = LAYOUT
    encoder = "legacy"

    def decode_blocks(self, blocks: NDArray[Any]) -> NDArray[np.float32]:
        d = blocks["d"].astype(np.float32)[:, None]
        m = blocks["m"].astype(np.float32)[:, None]
        high = np.unpackbits(blocks["qh"], axis=1, bitorder="little")
        q = planes(blocks["qs"], 16, 4).reshape(-1, 32) | (high << np.uint8(4))
        return d * q.astype(np.float32) + m
