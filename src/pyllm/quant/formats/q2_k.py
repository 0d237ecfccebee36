"""Q2_K: 256 weights in 84 bytes (2.625 bits), in 16 groups of 16. w = d * scale * q - dmin * min, q of 2 bits.

Layout: scales 16 bytes, one a group, its scale in the low four bits and its min in the high four;
qs 64 bytes, q: two runs of 32 bytes, each of which holds 128 weights;
byte i of a run has weights i, 32 + i, 64 + i and 96 + i, from its lowest bits upwards;
d float16, scale of the scales; dmin float16, scale of the mins.
Source: `block_q2_K` in ggml-common.h.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.quant.base import QuantFormat
from pyllm.quant.bits import planes

LAYOUT = np.dtype(
    [
        ("scales", "u1", 16),
        ("qs", "u1", 64),
        ("d", "<f2"),
        ("dmin", "<f2"),
    ]
)
assert LAYOUT.itemsize == 84


class Q2_K(QuantFormat):
    name = "Q2_K"
    ggml_type = 10
    block_size = 256
    layout = LAYOUT
    encoder = "k_quants"

    def decode_blocks(self, blocks: NDArray[Any]) -> NDArray[np.float32]:
        scales = blocks["scales"]
        d = blocks["d"].astype(np.float32)[:, None] * (scales & np.uint8(0x0F)).astype(np.float32)  # [n, 16]
        dmin = blocks["dmin"].astype(np.float32)[:, None] * (scales >> np.uint8(4)).astype(np.float32)
        q = planes(blocks["qs"], 32, 2).reshape(-1, 16, 16).astype(np.float32)
        return d[:, :, None] * q - dmin[:, :, None]
