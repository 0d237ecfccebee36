"""MXFP4: 32 weights in 17 bytes (4.25 bits). w = 2^(e - 128) * VALUES[q], q of 4 bits.

Layout: e, exponent of a power of two (E8M0), for doubled values; qs 16 bytes, byte i has weight i below and weight 16
+ i above. e = 255, which the specification calls no number, is 2^127 here as in ggml.
Source: `block_mxfp4` and `ggml_e8m0_to_fp32_half` in ggml; OCP Microscaling Formats (MX) Specification 1.0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.quant.base import QuantFormat
from pyllm.quant.bits import planes

LAYOUT = np.dtype(
    [
        ("e", "u1"),
        ("qs", "u1", 16),
    ]
)
assert LAYOUT.itemsize == 17


VALUES = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)
"""Values of the 16 codes (`kvalues_mxfp4`): E2M1 numbers, doubled."""


class MXFP4(QuantFormat):
    name = "MXFP4"
    ggml_type = 39
    block_size = 32
    layout = LAYOUT
    encoder = "codebook4"

    def decode_blocks(self, blocks: NDArray[Any]) -> NDArray[np.float32]:
        e = blocks["e"].astype(np.uint32)
        bits = np.where(
            e < 2, np.uint32(1 << 21) << e, (e - np.uint32(1)) << np.uint32(23)
        )  # 2^-128, 2^-127 are subnormal
        values = VALUES[planes(blocks["qs"], 16, 4).reshape(-1, 32)].astype(np.float32)
        return bits.view(np.float32)[:, None] * values
