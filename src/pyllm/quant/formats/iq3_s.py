"""IQ3_S: 256 weights in 110 bytes (3.4375 bits), in 8 groups of 32. w = d * (2 * scale + 1) * sign * magnitude.

Magnitudes come by fours out of a codebook of 512 (`pyllm.quant.codebooks`).
Layout: d float16; qs 64 bytes, the low 8 bits of the codebook's indices; qh 8 bytes, their ninth bits, one byte a
group; signs 32 bytes, one bit a weight, 1: negative; scales 4 bytes, 4 bits a group, the even groups' below.
Source: `block_iq3_s` and `dequantize_row_iq3_s` in ggml.
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
        ("qs", "u1", 64),
        ("qh", "u1", 8),
        ("signs", "u1", 32),
        ("scales", "u1", 4),
    ]
)
assert LAYOUT.itemsize == 110


class IQ3_S(QuantFormat):
    name = "IQ3_S"
    ggml_type = 21
    block_size = 256
    layout = LAYOUT
    encoder = "iq3"

    def decode_blocks(self, blocks: NDArray[Any]) -> NDArray[np.float32]:
        high = planes(blocks["qh"], 1, 1).reshape(-1, 64).astype(np.uint16) << np.uint16(8)
        magnitudes = codebook(self.name)[blocks["qs"] | high].astype(np.float32).reshape(-1, 8, 4, 8)
        scale = planes(blocks["scales"], 1, 4).reshape(-1, 8)
        db = blocks["d"].astype(np.float32)[:, None] * (1 + 2 * scale).astype(np.float32)  # [n, 8]
        return db[:, :, None, None] * (magnitudes * signs(blocks["signs"]).reshape(-1, 8, 4, 8))
