"""TQ1_0: 256 weights in 54 bytes (1.6875 bits). w = d * (q - 1), q of 0, 1, 2.

Five weights are the digits of a number to the base 3, scaled so that multiplying by 3 brings them out on top of a
byte, the first weight's first.
Layout: qs 48 bytes: byte i < 32 has weights i, 32 + i .. 128 + i; byte 32 + i has weights 160 + i, 176 + i .. 224 +
i; qh 4 bytes, byte i has weights 240 + i, 244 + i, 248 + i, 252 + i; d float16.
Source: `block_tq1_0` and `dequantize_row_tq1_0` in ggml.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.quant.base import QuantFormat

LAYOUT = np.dtype(
    [
        ("qs", "u1", 48),
        ("qh", "u1", 4),
        ("d", "<f2"),
    ]
)
assert LAYOUT.itemsize == 54


def digits(data: NDArray[np.uint8], n: int) -> NDArray[np.uint8]:
    """The first n digits of bytes, digit by digit: uint8 [blocks, m] -> uint8 [blocks, n * m]."""
    powers = 3 ** np.arange(n, dtype=np.uint8)
    left = data[:, None] * powers[:, None]  # modulo 256: what went over are the digits before
    return ((left.astype(np.uint16) * np.uint16(3)) >> np.uint16(8)).astype(np.uint8).reshape(len(data), -1)


class TQ1_0(QuantFormat):
    name = "TQ1_0"
    ggml_type = 34
    block_size = 256
    layout = LAYOUT
    encoder = "ternary"

    def decode_blocks(self, blocks: NDArray[Any]) -> NDArray[np.float32]:
        q = np.concatenate(
            [
                digits(blocks["qs"][:, :32], 5),
                digits(blocks["qs"][:, 32:], 5),
                digits(blocks["qh"], 4),
            ],
            axis=1,
        )
        return blocks["d"].astype(np.float32)[:, None] * (q.astype(np.float32) - np.float32(1))
