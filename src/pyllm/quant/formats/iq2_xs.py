"""IQ2_XS: 256 weights in 74 bytes (2.3125 bits), in 16 groups of 16. w = d * (scale + 1/2) / 4 * sign * magnitude.

Magnitudes come by eights out of a codebook of 512 (`pyllm.quant.codebooks`); of eight signs an even number is negative.
Layout: d float16; qs 32 times uint16, one for 8 weights: 9 bits index of the codebook, then 7 bits of signs;
scales 8 bytes, 4 bits a group, the even groups' below.
Source: `block_iq2_xs` and `dequantize_row_iq2_xs` in ggml.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.quant.base import QuantFormat
from pyllm.quant.bits import planes
from pyllm.quant.codebooks import codebook, even_signs

LAYOUT = np.dtype(
    [
        ("d", "<f2"),
        ("qs", "<u2", 32),
        ("scales", "u1", 8),
    ]
)
assert LAYOUT.itemsize == 74


class IQ2_XS(QuantFormat):
    name = "IQ2_XS"
    ggml_type = 17
    block_size = 256
    layout = LAYOUT
    encoder = "iq2"

    def decode_blocks(self, blocks: NDArray[Any]) -> NDArray[np.float32]:
        qs = blocks["qs"].reshape(-1, 16, 2)
        scale = planes(blocks["scales"], 1, 4).reshape(-1, 16).astype(np.float32)
        db = blocks["d"].astype(np.float32)[:, None] * (np.float32(0.5) + scale) * np.float32(0.25)  # [n, 16]
        magnitudes = codebook(self.name)[qs & np.uint16(511)].astype(np.float32)  # [n, 16, 2, 8]
        return db[:, :, None, None] * magnitudes * even_signs((qs >> np.uint16(9)).astype(np.uint8))
