"""Q4_K: 256 weights in 144 bytes (4.5 bits), in 8 groups of 32. w = d * scale * q - dmin * min, q of 4 bits.

Layout: d float16, scale of the scales; dmin float16, scale of the mins; scales 12 bytes, scales and mins of 6
bits (`pyllm.quant.bits.k_scales_mins`); qs 128 bytes: four runs of 32 bytes, each of which holds 64
weights; byte i of a run has weight i below and weight 32 + i above.
Source: `block_q4_K` in ggml-common.h.
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
        ("qs", "u1", 128),
    ]
)
assert LAYOUT.itemsize == 144


class Q4_K(QuantFormat):
    name = "Q4_K"
    ggml_type = 12
    block_size = 256
    layout = LAYOUT
    encoder = "k_quants"

    def decode_blocks(self, blocks: NDArray[Any]) -> NDArray[np.float32]:
        scales, mins = k_scales_mins(blocks["scales"])  # [n, 8]
        d = blocks["d"].astype(np.float32)[:, None] * scales.astype(np.float32)
        dmin = blocks["dmin"].astype(np.float32)[:, None] * mins.astype(np.float32)
        return d[:, :, None] * planes(blocks["qs"], 32, 4).astype(np.float32) - dmin[:, :, None]
