"""Q3_K: 256 weights in 110 bytes (3.4375 bits), in 16 groups of 16. w = d * (scale - 32) * (q - 4), q of 3 bits.

Layout: hmask 32 bytes, q's third bit: bit k of byte i is that of weight 32 * k + i;
qs 64 bytes, q's low two bits: two runs of 32 bytes, each of which holds 128 weights;
byte i of a run has weights i, 32 + i, 64 + i and 96 + i, from its lowest bits upwards;
scales 12 bytes, 6 bits a group: byte i < 8 has the low four bits of scale i below and of scale 8 + i above; byte 8 + i
has the high two bits of scales i, 4 + i, 8 + i and 12 + i, from its lowest bits upwards; d float16.
Source: `block_q3_K` in ggml-common.h.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.quant.base import QuantFormat
from pyllm.quant.bits import planes

LAYOUT = np.dtype(
    [
        ("hmask", "u1", 32),
        ("qs", "u1", 64),
        ("scales", "u1", 12),
        ("d", "<f2"),
    ]
)
assert LAYOUT.itemsize == 110


class Q3_K(QuantFormat):
    name = "Q3_K"
    ggml_type = 11
    block_size = 256
    layout = LAYOUT
    encoder = "k_quants"

    def decode_blocks(self, blocks: NDArray[Any]) -> NDArray[np.float32]:
        packed = blocks["scales"]
        high = planes(packed[:, 8:], 4, 2).reshape(-1, 16) << np.uint8(4)
        scales = (planes(packed[:, :8], 8, 4).reshape(-1, 16) | high).astype(np.int8) - np.int8(32)
        d = blocks["d"].astype(np.float32)[:, None] * scales.astype(np.float32)  # [n, 16]
        q = planes(blocks["qs"], 32, 2) | (planes(blocks["hmask"], 32, 1) << np.uint8(2))
        q = (q.astype(np.int8) - np.int8(4)).reshape(-1, 16, 16)
        return d[:, :, None] * q.astype(np.float32)
