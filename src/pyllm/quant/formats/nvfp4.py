"""NVFP4: 64 weights in 36 bytes (4.5 bits), in 4 groups of 16. w = scale / 2 * VALUES[q], q of 4 bits.

Layout: d 4 bytes, scales of the groups: UE4M3, 4 bits of exponent over 3 of mantissa, of which 0x7F is 0 and the top
bit is ignored; qs 32 bytes, 8 a group; byte i has a group's weight i below and weight 8 + i above. Values are those
of MXFP4.
Source: `block_nvfp4` and `ggml_ue4m3_to_fp32` in ggml.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.quant.base import QuantFormat
from pyllm.quant.bits import planes
from pyllm.quant.formats.mxfp4 import VALUES

LAYOUT = np.dtype(
    [
        ("d", "u1", 4),
        ("qs", "u1", 32),
    ]
)
assert LAYOUT.itemsize == 36


@cache
def scales() -> NDArray[np.float32]:
    """Half the value of each of the 256 scales: float32 [256]."""
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, code & 7
    value = np.where(exponent == 0, np.ldexp(mantissa, -10), np.ldexp(8 + mantissa, exponent - 11))
    return np.where(code == 0x7F, 0, value).astype(np.float32)


class NVFP4(QuantFormat):
    name = "NVFP4"
    ggml_type = 40
    block_size = 64
    layout = LAYOUT
    encoder = "codebook4"

    def decode_blocks(self, blocks: NDArray[Any]) -> NDArray[np.float32]:
        values = VALUES[planes(blocks["qs"], 8, 4).reshape(-1, 4, 16)].astype(np.float32)
        return scales()[blocks["d"]][:, :, None] * values
