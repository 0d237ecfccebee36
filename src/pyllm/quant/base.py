"""The base class of tensor formats, and the registry that a format joins when it is defined."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pyllm.errors import FormatError

REGISTRY: dict[str, QuantFormat] = {}
"""Formats defined so far, by name; `pyllm.quant.formats` loads all."""

_WEIGHTS_AT_ONCE = 1 << 18  # decoded per step, so that intermediate results stay in the cache


class QuantFormat(ABC):
    """How weights are stored: `block_size` consecutive weights of a row in `block_bytes` bytes.

    A subclass states the five attributes below and `decode_blocks`; defining it registers it. `layout` names the
    fields of a block, in ggml's own names; `[n]` below is a number of blocks.
    """

    name: ClassVar[str]
    """As ggml writes it, "Q4_K"."""
    ggml_type: ClassVar[int]
    """Number in GGUF files."""
    block_size: ClassVar[int]
    """Weights of a block."""
    layout: ClassVar[np.dtype[Any]]
    """A block, as a structured type without padding."""
    encoder: ClassVar[str | None] = None
    """Module of `pyllm.quant.kernels` whose `encode(format, source)` is the kernel that encodes rows; None: there is
    none."""

    def __init_subclass__(cls) -> None:
        known = REGISTRY.get(cls.name)
        if known is not None and type(known).__module__ != cls.__module__:
            raise TypeError(f"format {cls.name} is defined in {type(known).__module__} and in {cls.__module__}")
        REGISTRY[cls.name] = cls()

    @property
    def block_bytes(self) -> int:
        """Bytes of a block."""
        return self.layout.itemsize

    @property
    def bits_per_weight(self) -> float:
        """Bits that a weight takes, scales included."""
        return 8 * self.block_bytes / self.block_size

    @abstractmethod
    def decode_blocks(self, blocks: NDArray[Any]) -> NDArray[np.float32]:
        """Weights of blocks: `layout` [n] -> float32 [n, block_size] (or a shape that ravels to it)."""

    def decode(self, data: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Weights of stored rows: uint8 [..., n_bytes] -> float32 [..., n_weights], a new array.

        Bit-exact with the gguf package's decoder; NaN scales give NaN weights without an error.
        Raises FormatError where `data` is not bytes, or its rows are not whole blocks.
        """
        if data.dtype != np.uint8 or data.ndim == 0 or data.shape[-1] % self.block_bytes:
            raise FormatError(
                f"{self.name} data must be uint8 in rows of whole blocks of {self.block_bytes} bytes, "
                f"not {data.dtype} of shape {data.shape}"
            )
        blocks = np.ascontiguousarray(data).reshape(-1).view(self.layout)
        out = np.empty((len(blocks), self.block_size), np.float32)
        step = max(1, _WEIGHTS_AT_ONCE // self.block_size)
        with np.errstate(all="ignore"):
            for i in range(0, len(blocks), step):
                part = out[i : i + step]
                part[...] = self.decode_blocks(blocks[i : i + step]).reshape(part.shape)
        return out.reshape(*data.shape[:-1], data.shape[-1] // self.block_bytes * self.block_size)

    def encode(
        self, weights: NDArray[np.float32], importance: NDArray[np.float32] | None = None, n_threads: int = 1
    ) -> NDArray[np.uint8]:
        """Rows as they are stored: float32 [..., n_weights] -> uint8 [..., n_bytes].

        Minimizes the sum of importance (decoded - weights)² of each row; `importance` [n_weights] is finite and not
        negative. None: large weights of a group count more than small ones, by 1 + |weight| / (2 rms of
        the group). That costs about 1 % of plain squared error; on SmolLM2 it lowered KL divergence in 7 of 8 trials,
        whose own noise was of the same order. Q1_0 and MXFP4 take all ones.
        Scales are finite float16: larger weights are clamped. Magnitudes are clamped to 1e15, except in formats without
        blocks. Raises FormatError where rows are not whole blocks or weights are not finite.
        """
        from pyllm.quant.encoder import Encoder

        rows = np.ascontiguousarray(weights, np.float32)
        with Encoder(n_threads) as encoder:
            data, _ = encoder.encode(self, rows.reshape(-1, rows.shape[-1]).view(np.uint8), "F32", importance)
        return data.reshape(*rows.shape[:-1], data.shape[1])

    def __repr__(self) -> str:
        return f"<format {self.name}: {self.block_size} weights in {self.block_bytes} bytes>"
