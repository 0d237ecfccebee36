"""Q6_K: 256 weights in 210 bytes (6.5625 bits), in 16 groups of 16. w = d * scale * (q - 32), q of 6 bits.

Layout: ql 128 bytes, q's low four bits: two runs of 64 bytes, each of which holds 128 weights; byte i of a run has
weight i below and weight 64 + i above; qh 64 bytes, q's high two bits: two runs of 32 bytes; byte i of a run has
weights i, 32 + i, 64 + i and 96 + i, from its lowest bits upwards; scales 16 signed bytes, one a group; d float16.
Source: `block_q6_K` in ggml-common.h.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.quant.base import QuantFormat
from pyllm.quant.bits import planes

LAYOUT = np.dtype(
    [
        ("ql", "u1", 128),
        ("qh", "u1", 64),
        ("scales", "i1", 16),
        ("d", "<f2"),
    ]
)
assert LAYOUT.itemsize == 210


class Q6_K(QuantFormat):
    name = "Q6_K"
    ggml_type = 14
    block_size = 256
    layout = LAYOUT
    encoder = "k_quants"

    def decode_blocks(self, blocks: NDArray[Any]) -> NDArray[np.float32]:
        d = blocks["d"].astype(np.float32)[:, None] * blocks["scales"].astype(np.float32)  # [n, 16]
        low = planes(blocks["ql"], 64, 4).reshape(-1, 8, 32)
        q = (low | (planes(blocks["qh"], 32, 2) << np.uint8(4))).astype(np.int8) - np.int8(32)
        return d[:, :, None] * q.reshape(-1, 16, 16).astype(np.float32)
