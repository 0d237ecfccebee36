"""How ggml packs small integers into bytes; what several formats share. `[n]` is a number of blocks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def planes(data: NDArray[np.uint8], run: int, bits: int) -> NDArray[np.uint8]:
    """Integers of `bits` bits, spread over runs of `run` bytes: uint8 [n, m * run] -> uint8 [n, m * 8 // bits, run].

    A run's lowest bits come first, one integer from each of its bytes, then its next bits, and so on.
    """
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    out = (data.reshape(len(data), -1, 1, run) >> shifts) & np.uint8((1 << bits) - 1)
    return out.reshape(len(data), -1, run)


def k_scales_mins(scales: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Scales and mins of 6 bits, as Q4_K and Q5_K pack them: uint8 [n, 12] -> two of uint8 [n, 8].

    Bytes 0-3 hold scales 0-3 in their low 6 bits and the high 2 bits of scales 4-7 above them; bytes 4-7 the same of
    the mins; bytes 8-11 the low 4 bits of scales 4-7, and of mins 4-7 above them.
    """
    a, b, c = scales[:, 0:4], scales[:, 4:8], scales[:, 8:12]
    low = np.uint8(0x3F), np.uint8(0x30)
    return (
        np.concatenate([a & low[0], (c & np.uint8(0x0F)) | ((a >> np.uint8(2)) & low[1])], axis=1),
        np.concatenate([b & low[0], (c >> np.uint8(4)) | ((b >> np.uint8(2)) & low[1])], axis=1),
    )
