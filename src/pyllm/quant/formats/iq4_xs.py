"""IQ4_XS: 256 weights in 136 bytes (4.25 bits), in 8 groups of 32. w = d * (scale - 32) * VALUES[q], q of 4 bits.

Layout: d float16; scales_h uint16, the high 2 bits of the scales, from the lowest bits upwards; scales_l 4 bytes,
their low 4 bits, the even groups' below; qs 128 bytes, 16 a group; byte i has a group's weight i below and weight 16
+ i above. Values are those of IQ4_NL.
Source: `block_iq4_xs` in ggml-common.h.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.quant.base import QuantFormat
from pyllm.quant.bits import planes
from pyllm.quant.formats.iq4_nl import VALUES

LAYOUT = np.dtype(
    [
        ("d", "<f2"),
        ("scales_h", "<u2"),
        ("scales_l", "u1", 4),
        ("qs", "u1", 128),
    ]
)
assert LAYOUT.itemsize == 136


class IQ4_XS(QuantFormat):
    name = "IQ4_XS"
    ggml_type = 23
    block_size = 256
    layout = LAYOUT
    encoder = "codebook4"

    def decode_blocks(self, blocks: NDArray[Any]) -> NDArray[np.float32]:
        low = planes(blocks["scales_l"], 1, 4).reshape(-1, 8)
        high = (blocks["scales_h"][:, None] >> np.arange(0, 16, 2, dtype=np.uint16)).astype(np.uint8) & np.uint8(3)
        scale = (low | (high << np.uint8(4))).astype(np.int8) - np.int8(32)
        dl = blocks["d"].astype(np.float32)[:, None] * scale.astype(np.float32)  # [n, 8]
        return dl[:, :, None] * VALUES[planes(blocks["qs"], 16, 4).reshape(-1, 8, 32)].astype(np.float32)
