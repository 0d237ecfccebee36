"""IQ1_S: 256 weights in 50 bytes (1.5625 bits), in 8 groups of 32. w = d * (2 * scale + 1) * (q + shift).

q of -1, 0, 1 come by eights out of a codebook of 2048 (`pyllm.quant.codebooks`); shift is 1/8 or -1/8, one a group.
Layout: d float16; qs 32 bytes, the low 8 bits of the codebook's indices; qh eight uint16, one a group: four times the
high 3 bits of an index, from the lowest bits upwards, then the scale of 3 bits, then 1 for a negative shift.
Source: `block_iq1_s` and `dequantize_row_iq1_s` in ggml.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.quant.base import QuantFormat
from pyllm.quant.codebooks import codebook

LAYOUT = np.dtype(
    [
        ("d", "<f2"),
        ("qs", "u1", 32),
        ("qh", "<u2", 8),
    ]
)
assert LAYOUT.itemsize == 50


class IQ1_S(QuantFormat):
    name = "IQ1_S"
    ggml_type = 19
    block_size = 256
    layout = LAYOUT
    encoder = "iq1"

    def decode_blocks(self, blocks: NDArray[Any]) -> NDArray[np.float32]:
        qh = blocks["qh"]
        high = (qh[:, :, None] >> np.arange(0, 12, 3, dtype=np.uint16)) & np.uint16(7)
        index = blocks["qs"].reshape(-1, 8, 4) | (high << np.uint16(8))
        q = codebook(self.name)[index].astype(np.float32)  # [n, 8, 4, 8]
        shift = np.where(qh & np.uint16(0x8000), np.float32(-0.125), np.float32(0.125))
        scale = (2 * ((qh >> np.uint16(12)) & np.uint16(7)) + 1).astype(np.float32)
        dl = blocks["d"].astype(np.float32)[:, None] * scale  # [n, 8]
        return dl[:, :, None, None] * (q + shift[:, :, None, None])
