"""IQ2_S: 256 weights in 82 bytes (2.5625 bits), in 16 groups of 16. w = d * (scale + 1/2) / 4 * sign * magnitude.

Magnitudes come by eights out of a codebook of 1024 (`pyllm.quant.codebooks`).
Layout: d float16; qs 32 bytes, the low 8 bits of the codebook's indices; signs 32 bytes, one bit a weight, 1: negative;
qh 8 bytes, the high 2 bits of four indices each, from the lowest bits upwards; scales 8 bytes, 4 bits a group,
the even groups' below.
Source: `block_iq2_s` and `dequantize_row_iq2_s` in ggml, whose qs holds the signs too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.quant.base import QuantFormat
from pyllm.quant.bits import planes
from pyllm.quant.codebooks import codebook, signs

LAYOUT = np.dtype(
    [
        ("d", "<f2"),
        ("qs", "u1", 32),
        ("signs", "u1", 32),
        ("qh", "u1", 8),
        ("scales", "u1", 8),
    ]
)
assert LAYOUT.itemsize == 82


class IQ2_S(QuantFormat):
    name = "IQ2_S"
    ggml_type = 22
    block_size = 256
    layout = LAYOUT
    encoder = "iq2"

    def decode_blocks(self, blocks: NDArray[Any]) -> NDArray[np.float32]:
        high = planes(blocks["qh"], 1, 2).reshape(-1, 32).astype(np.uint16) << np.uint16(8)
        magnitudes = codebook(self.name)[blocks["qs"] | high].astype(np.float32) * signs(blocks["signs"])  # [n, 32, 8]
        scale = planes(blocks["scales"], 1, 4).reshape(-1, 16).astype(np.float32)
        db = blocks["d"].astype(np.float32)[:, None] * (np.float32(0.5) + scale) * np.float32(0.25)  # [n, 16]
        return db[:, :, None] * magnitudes.reshape(-1, 16, 16)
