"""Random weights in any format, made without encoding: valid blocks whose weights have mean 0 and a given deviation.

A tensor's data is a view of one shared map per format, in which a small pool of random blocks repeats. Views begin at
different blocks. So a model of any size takes the memory of its largest tensor of each format, and is ready at once.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.errors import FormatError, OutOfMemoryError
from pyllm.gguf.types import by_name
from pyllm.quant import formats
from pyllm.quant.base import QuantFormat
from pyllm.units import size

DEVIATION = 1 / 64
"""Standard deviation of the weights: that of a 4096-column matrix which preserves the norm of its input."""
_POOL_WEIGHTS = 1 << 19
_SHIFT = 61
"""Blocks between the starts of tensors in the map, so that neighbours of one size differ."""


class RandomWeights:
    """Maps of random weights, one for each format; `view` returns tensors."""

    def __init__(self, most_weights: Mapping[str, int], seed: int = 0) -> None:
        """`most_weights`: weights of the largest tensor of each format. Raises FormatError, OutOfMemoryError."""
        from pyllm.jit.memory import check_free

        self._shifts = dict.fromkeys(most_weights, 0)
        sizes = {name: self._map_bytes(name, n) for name, n in most_weights.items()}
        check_free({f"random {name} weights": n for name, n in sizes.items()})
        self._maps = {name: _filled(random_blocks(name, seed), n) for name, n in sizes.items()}

    @property
    def n_bytes(self) -> int:
        return sum(data.nbytes for data in self._maps.values())

    def view(self, format: str, n_weights: int) -> NDArray[np.uint8]:
        """Blocks of this many weights: uint8 [bytes], read-only."""
        kind = by_name(format)
        shift = self._shifts[format] * _SHIFT % _pool_blocks(kind.block_size)
        self._shifts[format] += 1
        start = shift * kind.block_bytes
        return self._maps[format][start : start + kind.n_bytes(n_weights)]

    @staticmethod
    def _map_bytes(format: str, n_weights: int) -> int:
        kind = by_name(format)
        return kind.n_bytes(n_weights) + _pool_blocks(kind.block_size) * kind.block_bytes


@cache
def random_blocks(format: str, seed: int = 0) -> NDArray[np.uint8]:
    """A pool of blocks of half a million random weights: uint8 [bytes]. Raises FormatError for an unknown format."""
    quant = formats.get(format)
    rng = np.random.default_rng(seed)
    n = _pool_blocks(quant.block_size)
    if quant.block_size == 1:
        return _floats(format, rng.normal(0, DEVIATION, n).astype(np.float32))
    blocks = np.frombuffer(rng.bytes(n * quant.block_bytes), quant.layout).copy()
    if format in _EXPONENTS:
        field, code = _EXPONENTS[format]
        blocks[field] = code
    elif format == "IQ1_M":
        _scale_iq1_m(quant, blocks)
    else:
        if format in _TERNARY:
            codes = blocks["qs"]
            codes ^= (codes & codes >> 1 & 0x55) << 1  # no code 3, which would be twice as large as any other
        _scale(quant, blocks)
    return blocks.view(np.uint8).reshape(-1)


_EXPONENTS: Mapping[str, tuple[str, int]] = {"MXFP4": ("e", 120), "NVFP4": ("d", 3)}
"""Formats whose scales are not float16: the field, and the code of about the given deviation."""

_TERNARY = ("TQ2_0", "Q2_0")
"""Formats of three values in two bits."""


def _floats(format: str, values: NDArray[np.float32]) -> NDArray[np.uint8]:
    if format == "F32":
        return values.view(np.uint8)
    if format == "F16":
        return values.astype(np.float16).view(np.uint8)
    if format == "BF16":
        return (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16).view(np.uint8)
    raise FormatError(f"there are no random weights of format {format}")


def _scale(quant: QuantFormat, blocks: NDArray[Any]) -> None:
    """Set a block's scale, and its offset if it has one, for the given mean and deviation of all weights."""
    scale, *offsets = [name for name in blocks.dtype.names or () if blocks.dtype[name].kind == "f"]
    blocks[scale] = 1.0
    for name in offsets:
        blocks[name] = 0.0
    values = quant.decode_blocks(blocks).astype(np.float64)
    ratio = 0.0
    if offsets:
        mean = values.mean()
        blocks[scale], blocks[offsets[0]] = 0.0, 1.0
        by_offset = quant.decode_blocks(blocks).astype(np.float64)
        # Q8_1 keeps a sum of its integers beside the scale; no weight depends on it.
        if by_offset.any():
            ratio = -mean / by_offset.mean()
            values = values + ratio * by_offset
    factor = DEVIATION / values.std()
    blocks[scale] = factor
    for name in offsets:
        blocks[name] = factor * ratio


def _scale_iq1_m(quant: QuantFormat, blocks: NDArray[Any]) -> None:
    """The same for IQ1_M, whose scale is in the upper four bits of four numbers, lowest bits first."""

    def put(scale: float) -> None:
        bits = int(np.float16(scale).view(np.uint16))
        nibbles = np.array([(bits >> 4 * i & 15) << 12 for i in range(4)], np.uint16)
        blocks["scales"] = blocks["scales"] & np.uint16(0x0FFF) | nibbles

    put(1.0)
    put(DEVIATION / float(quant.decode_blocks(blocks).std(dtype=np.float64)))


def _filled(pool: NDArray[np.uint8], n_bytes: int) -> NDArray[np.uint8]:
    """A shared anonymous map of `n_bytes` in which the pool repeats: uint8 [n_bytes], read-only.

    Shared, because a backend drops a tensor's pages after reading: those of a shared map keep their content.
    """
    try:
        data = np.frombuffer(mmap.mmap(-1, n_bytes), np.uint8)
    except (OSError, ValueError, OverflowError) as e:
        raise OutOfMemoryError(f"the system refuses {size(n_bytes)} for random weights ({e})") from e
    for start in range(0, n_bytes, len(pool)):
        part = data[start : start + len(pool)]
        part[...] = pool[: len(part)]
    data.flags.writeable = False
    return data


def _pool_blocks(block_size: int) -> int:
    """An odd number, so that the rows of a matrix, of 2^n blocks mostly, do not repeat before the pool does."""
    return _POOL_WEIGHTS // block_size | 1
