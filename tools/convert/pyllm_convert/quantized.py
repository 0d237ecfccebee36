"""Checkpoints that are quantized already: 8 bits (float8, int8) with scales, and gpt-oss's 4-bit blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.errors import ModelError
from pyllm_convert.lazy import Lazy, require

MXFP4_WEIGHTS = 32
"""Weights of a block."""
MXFP4_BYTES = 17
"""Bytes of a block in GGUF: the exponent, then 16 bytes of two weights each."""

_SCALED = ("F8_E4M3", "F8_E5M2", "I8")
_METHODS = ("fp8", "mxfp4", "compressed-tensors", "modelopt", "fbgemm_fp8")
_COMPRESSED = ("float-quantized", "int-quantized", "naive-quantized", "dense")
"""Formats of compressed-tensors whose weights are 8 bits each, times a scale."""
_UNUSED = ("input_scale", "activation_scale", "k_scale", "v_scale", "input_scale_ub", "output_scale")
"""Last parts of names that only matter where activations are quantized, too."""


def check_method(config: Mapping[str, Any]) -> None:
    """Raises ModelError for quantized checkpoints that are neither 8 bits with scales nor MXFP4."""
    method = config.get("quant_method")
    if method == "compressed-tensors" and config.get("format") not in _COMPRESSED:
        method = config.get("format")
    if method == "modelopt" and config.get("quant_algo") not in (None, "FP8"):
        method = config["quant_algo"]
    if method is not None and method not in _METHODS:
        raise ModelError(
            f"the checkpoint is quantized with {method!r}, which cannot be converted; take the original in BF16 or "
            "F16, or one in FP8"
        )


def without_scales(tensors: Mapping[str, Lazy], config: Mapping[str, Any]) -> dict[str, Lazy]:
    """The tensors, those of 8 bits multiplied by their scales (float32 rows), and the scales taken away.

    The scale of `x` is `x_scale_inv` or `x_scale`: one number, one for each row, or one for each block of
    `weight_block_size` rows and columns. `config` is config.json's quantization_config.
    """
    check_method(config)
    scales = {name for name, t in tensors.items() if _weight_of(name, tensors) is not None}
    out = {}
    for name, t in tensors.items():
        if name in scales or name.rsplit(".", 1)[-1].endswith(_UNUSED):
            continue
        scale = tensors.get(f"{name}_scale_inv", tensors.get(f"{name}_scale"))
        out[name] = t if scale is None or t.dtype not in _SCALED else scaled(t, scale, config)
    return out


def _weight_of(name: str, tensors: Mapping[str, Lazy]) -> str | None:
    for ending in ("_scale_inv", "_scale"):
        if name.endswith(ending) and name.removesuffix(ending) in tensors:
            return name.removesuffix(ending)
    return None


def scaled(t: Lazy, scale: Lazy, config: Mapping[str, Any]) -> Lazy:
    """`t` times `scale`, in float32. Raises ModelError where their shapes do not go together."""
    require(scale, None, ("F32", "BF16", "F16", "F64"))
    shape = _with_axes_of(t, scale)
    block = _block_size(config)
    per_row = _per_element(t, scale, shape, -2, block[0])
    per_column = _per_element(t, scale, shape, -1, block[1])
    matrices = np.broadcast_to(np.arange(prod(shape[:-2])).reshape(shape[:-2]), t.shape[:-2])
    own_row = (matrices.reshape(-1, 1) * shape[-2] + per_row).reshape(-1)  # row of scales of each row
    widths = np.bincount(per_column)

    def rows(start: int, stop: int) -> NDArray[np.float32]:
        factors = scale.floats(0, scale.n_rows).reshape(-1, shape[-1])[own_row[start:stop]]
        values = t.floats(start, stop)
        if np.ptp(widths):
            return np.multiply(values, factors[:, per_column], out=values)
        blocks = values.reshape(stop - start, shape[-1], widths[0])
        return np.multiply(blocks, factors[:, :, None], out=blocks).reshape(values.shape)

    return replace(t, dtype="F32", rows=rows, keep="BF16")


def _with_axes_of(t: Lazy, scale: Lazy) -> tuple[int, ...]:
    """The scales' shape with as many axes as the tensor has: one number, or one for each row, may come with fewer."""
    shape = scale.shape
    if len(shape) < 2:
        shape = (1, 1) if scale.n_columns == 1 else (*shape, 1)
        shape = (1,) * (len(t.shape) - 2) + shape
    if not 2 <= len(shape) == len(t.shape) or any(
        n not in (1, own) for n, own in zip(shape[:-2], t.shape, strict=False)
    ):
        raise _mismatch(t, scale)
    return shape


def _per_element(t: Lazy, scale: Lazy, shape: tuple[int, ...], axis: int, block: int) -> NDArray[np.int64]:
    """Index of the scale of each row or column."""
    n, n_scales = t.shape[axis], shape[axis]
    if n_scales == 1:
        return np.zeros(n, np.int64)
    if n_scales == n:
        return np.arange(n)
    if n_scales != -(-n // block):
        raise _mismatch(t, scale)
    return np.arange(n) // block


def _block_size(config: Mapping[str, Any]) -> tuple[int, int]:
    block = config.get("weight_block_size") or _block_structure(config) or [128, 128]
    if not isinstance(block, list) or len(block) != 2 or not all(type(n) is int and 0 < n < 1 << 24 for n in block):
        raise ModelError(f"config.json's weight_block_size is {block!r}; two counts are needed, such as [128, 128]")
    return block[0], block[1]


def _block_structure(config: Mapping[str, Any]) -> Any:
    """compressed-tensors' word for the same, in its first group."""
    groups = config.get("config_groups")
    group = next(iter(groups.values()), None) if isinstance(groups, dict) else None
    weights = group.get("weights") if isinstance(group, dict) else None
    return weights.get("block_structure") if isinstance(weights, dict) else None


def _mismatch(t: Lazy, scale: Lazy) -> ModelError:
    return ModelError(f"the scales {scale.name} of shape {scale.shape} do not fit {t.name} of shape {t.shape}")


def mxfp4(name: str, blocks: Lazy, scales: Lazy, first: int = 0, step: int = 1) -> Lazy:
    """gpt-oss's blocks [experts, rows, blocks, 16] and exponents [experts, rows, blocks] as GGUF's MXFP4, exactly.

    Of each expert, rows first, first + step, … are taken. A byte of the checkpoint holds two neighbours; one of GGUF
    holds weights j and j + 16 of the block's 32. Rows are uint8 [rows, blocks * 17] of a tensor whose shape counts
    weights.
    """
    require(blocks, 4, ("U8",))
    require(scales, 3, ("U8", "F8_E8M0"))
    experts, n_rows, n_blocks = scales.shape
    if blocks.shape != (*scales.shape, MXFP4_WEIGHTS // 2) or n_rows % step:
        raise ModelError(f"{blocks.name} {blocks.shape} and {scales.name} {scales.shape} do not go together")

    def rows(start: int, stop: int) -> NDArray[np.uint8]:
        low, high = start * step, stop * step
        packed = blocks.rows(low * n_blocks, high * n_blocks).reshape(-1, n_blocks, MXFP4_WEIGHTS // 2)[first::step]
        early, late = packed[..., :8], packed[..., 8:]  # weights 0 to 15, and 16 to 31
        out = np.empty((stop - start, n_blocks, MXFP4_BYTES), np.uint8)
        out[..., 0] = scales.rows(low, high)[first::step]
        out[..., 1::2] = early & 15 | late << 4
        out[..., 2::2] = early >> 4 | late & 0xF0
        return out.reshape(stop - start, n_blocks * MXFP4_BYTES)

    return Lazy(name, (experts, n_rows // step, n_blocks * MXFP4_WEIGHTS), "MXFP4", rows)
