"""IQ2_XXS: 256 weights in 66 bytes (2.0625 bits), in 8 groups of 32. w = d * (scale + 1/2) / 4 * sign * magnitude.

Magnitudes come by eights out of a codebook of 256 (`pyllm.quant.codebooks`); of eight signs an even number is
negative.
Layout: d float16; qs eight groups of 8 bytes: four indices of the codebook, then a little-endian uint32 with four
times 7 bits of signs, from its lowest bits upwards, and the scale of 4 bits on top.
Source: `block_iq2_xxs` and `dequantize_row_iq2_xxs` in ggml.
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
        ("qs", "<u4", 16),
    ]
)
assert LAYOUT.itemsize == 66


class IQ2_XXS(QuantFormat):
    name = "IQ2_XXS"
    ggml_type = 16
    block_size = 256
    layout = LAYOUT
    encoder = "iq2"

    def decode_blocks(self, blocks: NDArray[Any]) -> NDArray[np.float32]:
        qs = blocks["qs"].reshape(-1, 8, 2)
        index = np.ascontiguousarray(qs[:, :, 0]).view(np.uint8).reshape(-1, 8, 4)
        scale = (qs[:, :, 1] >> np.uint32(28)).astype(np.float32)
        db = blocks["d"].astype(np.float32)[:, None] * (np.float32(0.5) + scale) * np.float32(0.25)  # [n, 8]
        codes = (qs[:, :, 1, None] >> np.arange(0, 28, 7, dtype=np.uint32)) & np.uint32(127)
        magnitudes = codebook(self.name)[index].astype(np.float32)  # [n, 8, 4, 8]
        return db[:, :, None, None] * magnitudes * even_signs(codes.astype(np.uint8))
