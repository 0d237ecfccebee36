"""Random tensors in any format, of a realistic deviation: block bytes are random, their float scales are set.

A format needs only its layout here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.gguf.tensor import TensorInfo
from pyllm.quant import formats

F32 = NDArray[np.float32]


def random_tensor(
    name: str, shape: tuple[int, ...], fmt: str = "F32", *, std: float, mean: float = 0.0, seed: int = 0
) -> TensorInfo:
    """Random weights of about this standard deviation. Float formats are normal; blocks of others are random bytes."""
    rng = np.random.default_rng([seed, *name.encode()])
    if fmt in ("F32", "F16", "BF16"):
        values = (mean + std * rng.standard_normal(shape)).astype(np.float32)
        data = _encode_float(values, fmt)
    else:
        data = _random_blocks(rng, shape, fmt, std)
    return TensorInfo(name, shape, fmt, data.view(np.uint8).reshape(-1))


def _encode_float(values: F32, fmt: str) -> NDArray[Any]:
    if fmt == "BF16":
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(np.float16 if fmt == "F16" else np.float32)


def _random_blocks(rng: np.random.Generator, shape: tuple[int, ...], fmt: str, std: float) -> NDArray[Any]:
    quant = formats.get(fmt)
    blocks = np.frombuffer(rng.bytes(int(np.prod(shape)) // quant.block_size * quant.block_bytes), quant.layout).copy()
    other = _OTHER_SCALES.get(fmt)
    halves = [name for name in quant.layout.names or () if quant.layout[name] == np.dtype("<f2")]
    scales = ["scale"] if other else halves

    def weights(size: Mapping[str, float | NDArray[np.floating]]) -> F32:
        for name in scales:
            value = np.broadcast_to(np.float32(size.get(name, 0.0)), len(blocks))
            if other:
                other(rng, blocks, value)
            else:
                blocks[name] = value
        return quant.decode(blocks.view(np.uint8).reshape(1, -1))

    # weights are linear in the scales: the second (a minimum) gets the size that centres what the first gives
    size = {scales[0]: 1.0}
    if len(scales) > 1:
        size[scales[1]] = -float(np.mean(weights(size)) / np.mean(weights({scales[1]: 1.0})))
    spread = float(np.std(weights(size)))
    sign = np.where(rng.random(len(blocks)) < 0.5, -1.0, 1.0)
    weights({n: v * std / spread * sign * rng.uniform(0.7, 1.3, len(blocks)) for n, v in size.items()})
    return blocks


# Scales that are not float16: about `value`, positive where the format is unsigned.


def _scale_mxfp4(rng: np.random.Generator, blocks: NDArray[Any], value: F32) -> None:
    blocks["e"] = 128 + np.floor(np.log2(np.abs(value)) + rng.random(len(value)))


def _scale_nvfp4(rng: np.random.Generator, blocks: NDArray[Any], value: F32) -> None:
    codes = np.arange(127)
    halved = np.where(codes < 8, codes / 1024, (8 + codes % 8) * 2.0 ** (codes // 8 - 11))
    blocks["d"] = np.searchsorted(halved, np.abs(value))[:, None]


def _scale_iq1_m(rng: np.random.Generator, blocks: NDArray[Any], value: F32) -> None:
    nibbles = value.astype(np.float16).view(np.uint16)[:, None] >> np.arange(0, 16, 4, dtype=np.uint16)
    blocks["scales"] = (blocks["scales"] & 0x0FFF) | (nibbles << 12)


def _scale_d(rng: np.random.Generator, blocks: NDArray[Any], value: F32) -> None:
    blocks["d"] = value


_OTHER_SCALES = {
    "MXFP4": _scale_mxfp4, "NVFP4": _scale_nvfp4, "IQ1_M": _scale_iq1_m, "Q8_1": _scale_d, "Q8_K": _scale_d,
}  # fmt: skip


def decoded(tensor: TensorInfo) -> F32:
    """A tensor as float32, of its shape."""
    return formats.get(tensor.format).decode(tensor.data).reshape(tensor.shape)
