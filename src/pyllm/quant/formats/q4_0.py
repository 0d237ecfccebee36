"""Q4_0: 32 weights in 18 bytes (4.5 bits). w = d * (q - 8), q of 4 bits.

Layout: d float16, the scale; qs 16 bytes. Nibbles: byte i of `qs` holds weight i below and weight i + 16 above.
Source: `block_q4_0` in ggml-common.h.
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


class Q4_0(QuantFormat):
    name = "Q4_0"
    ggml_type = 2
    block_size = 32
    layout = LAYOUT
    encoder = "legacy"

    def decode_blocks(self, blocks: NDArray[Any]) -> NDArray[np.float32]:
        d = blocks["d"].astype(np.float32)[:, None, None]
        q = planes(blocks["qs"], 16, 4).astype(np.int8) - np.int8(8)
        return d * q.astype(np.float32)
