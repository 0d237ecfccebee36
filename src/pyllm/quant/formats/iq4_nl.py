"""IQ4_NL: 32 weights in 18 bytes (4.5 bits). w = d * VALUES[q], q of 4 bits.

Layout: d float16; qs 16 bytes, byte i has weight i below and weight 16 + i above.
Source: `block_iq4_nl` and `kvalues_iq4nl` in ggml-common.h.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.quant.base import QuantFormat
from pyllm.quant.bits import planes

LAYOUT = np.dtype(
    [
        ("d", "<f2"),
        ("qs", "u1", 16),
    ]
)
assert LAYOUT.itemsize == 18


VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)
"""Values of the 16 codes (`kvalues_iq4nl`)."""


class IQ4_NL(QuantFormat):
    name = "IQ4_NL"
    ggml_type = 20
    block_size = 32
    layout = LAYOUT
    encoder = "codebook4"

    def decode_blocks(self, blocks: NDArray[Any]) -> NDArray[np.float32]:
        values = VALUES[planes(blocks["qs"], 16, 4).reshape(-1, 32)].astype(np.float32)
        return blocks["d"].astype(np.float32)[:, None] * values
