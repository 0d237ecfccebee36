"""IQ3_XXS: 256 weights in 98 bytes (3.0625 bits), in 8 groups of 32. w = d * (scale + 1/2) / 2 * sign * magnitude.

Magnitudes come by fours out of a codebook of 256 (`pyllm.quant.codebooks`); of eight signs an even number is negative.
Layout: d float16; qs 64 bytes, indices of the codebook; scales_and_signs eight little-endian uint32, one a
group: four times 7 bits of signs, from its lowest bits upwards, and the scale of 4 bits on top.
Source: `block_iq3_xxs` and `dequantize_row_iq3_xxs` in ggml, whose qs holds all that follows d.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.quant.base import QuantFormat
from pyllm.quant.codebooks import codebook, even_signs

LAYOUT = np.dtype(
    [
        ("d", "<f2"),
        ("qs", "u1", 64),
        ("scales_and_signs", "<u4", 8),
    ]
)
assert LAYOUT.itemsize == 98


class IQ3_XXS(QuantFormat):
    name = "IQ3_XXS"
    ggml_type = 18
    block_size = 256
    layout = LAYOUT
    encoder = "iq3"

    def decode_blocks(self, blocks: NDArray[Any]) -> NDArray[np.float32]:
        packed = blocks["scales_and_signs"]
        scale = (packed >> np.uint32(28)).astype(np.float32)
        db = blocks["d"].astype(np.float32)[:, None] * (np.float32(0.5) + scale) * np.float32(0.5)  # [n, 8]
        codes = (packed[:, :, None] >> np.arange(0, 28, 7, dtype=np.uint32)) & np.uint32(127)
        magnitudes = codebook(self.name)[blocks["qs"]].astype(np.float32).reshape(-1, 8, 4, 8)
        return db[:, :, None, None] * magnitudes * even_signs(codes.astype(np.uint8))
