"""IQ1_M: 256 weights in 56 bytes (1.75 bits), in 16 groups of 16. w = d * (2 * scale + 1) * (q + shift).

q of -1, 0, 1 come by eights out of IQ1_S's codebook (`pyllm.quant.codebooks`); shift is 1/8 or -1/8, one for eight
weights.
Layout: qs 32 bytes, the low 8 bits of the codebook's indices; qh 16 bytes, 4 bits for eight weights, the first's
below: the high 3 bits of an index, then 1 for a negative shift; scales four uint16: 3 bits a group, from the lowest
bits upwards, and on top 4 bits of d, a float16 whose lowest bits are in the first.
Source: `block_iq1_m` and `dequantize_row_iq1_m` in ggml.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.quant.base import QuantFormat
from pyllm.quant.bits import planes
from pyllm.quant.codebooks import codebook

LAYOUT = np.dtype(
    [
        ("qs", "u1", 32),
        ("qh", "u1", 16),
        ("scales", "<u2", 4),
    ]
)
assert LAYOUT.itemsize == 56


class IQ1_M(QuantFormat):
    name = "IQ1_M"
    ggml_type = 29
    block_size = 256
    layout = LAYOUT
    encoder = "iq1"

    def decode_blocks(self, blocks: NDArray[Any]) -> NDArray[np.float32]:
        qh, scales = planes(blocks["qh"], 1, 4).reshape(-1, 32).astype(np.uint16), blocks["scales"]
        q = codebook("IQ1_S")[blocks["qs"] | ((qh & np.uint16(7)) << np.uint16(8))].astype(np.float32)  # [n, 32, 8]
        shift = np.where(qh & np.uint16(8), np.float32(-0.125), np.float32(0.125))
        scale = ((scales[:, :, None] >> np.arange(0, 12, 3, dtype=np.uint16)) & np.uint16(7)).reshape(-1, 16)
        nibbles = (scales >> np.uint16(12)) << np.arange(0, 16, 4, dtype=np.uint16)
        d = np.bitwise_or.reduce(nibbles, axis=1).view(np.float16).astype(np.float32)
        dl = d[:, None] * (2 * scale + 1).astype(np.float32)  # [n, 16]
        return dl[:, :, None, None] * (q + shift[:, :, None]).reshape(-1, 16, 2, 8)
