"""Q5_K: 256 weights in 176 bytes (5.5 bits), in 8 groups of 32. w = d * scale * q - dmin * min, q of 5 bits.

Layout: d float16, scale of the scales; dmin float16, scale of the mins; scales 12 bytes, scales and mins of 6
bits (`pyllm.quant.bits.k_scales_mins`); qh 32 bytes, q's fifth bit: bit k of byte i is that of weight 32 * k + i;
qs 128 bytes, q's low four bits: four runs of 32 bytes, each of which holds 64
weights; byte i of a run has weight i below and weight 32 + i above.
Source: `block_q5_K` in ggml-common.h.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.quant.base import QuantFormat
from pyllm.quant.bits import k_scales_mins, planes

LAYOUT = np.dtype(
    [
        ("d", "<f2"),
        ("dmin", "<f2"),
        ("scales", "u1", 12),
        ("qh", "u1", 32),
        ("qs", "u1", 128),
    ]
)
assert LAYOUT.itemsize == 176


class Q5_K(QuantFormat):
    name = "Q5_K"
    ggml_type = 13
    block_size = 256
    layout = LAYOUT
    encoder = "k_quants"

    def decode_blocks(self, blocks: NDArray[Any]) -> NDArray[np.float32]:
        scales, mins = k_scales_mins(blocks["scales"])  # [n, 8]
        d = blocks["d"].astype(np.float32)[:, None] * scales.astype(np.float32)
        dmin = blocks["dmin"].astype(np.float32)[:, None] * mins.astype(np.float32)
        q = planes(blocks["qs"], 32, 4) | (planes(blocks["qh"], 32, 1) << np.uint8(4))
        return d[:, :, None] * q.astype(np.float32) - dmin[:, :, None]
