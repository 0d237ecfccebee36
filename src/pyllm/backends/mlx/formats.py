"""Each GGUF format in mlx's terms: integers and scales of its blocks. numpy only, no mlx.

A format is `Affine` (mlx's own quantization, groups of 32 to 128 columns with a scale and a bias), `Mode` (one of mlx's
block-float modes), or `Coded` (groups of 16 or values of a table, which mlx lacks: products by pyllm's Metal kernel, or
by decoding). All represent a file's weights exactly as long as scales are float32. Other formats are kept as floats.
Integers are stored unsigned: `codes`. `[n]` is a number of blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pyllm.quant.bits import k_scales_mins, planes
from pyllm.quant.codebooks import codebook, even_signs, signs
from pyllm.quant.formats import iq4_nl, mxfp4, tq1_0
from pyllm.records import dataclass

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
Blocks = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Affine:
    """w = scale * code + bias. `unpack`: blocks → codes [n, block], scale and bias float32 [n, block / group]."""

    bits: int
    group: int
    unpack: Callable[[Blocks], tuple[U8, F32, F32]]


@dataclass(frozen=True, slots=True)
class Mode:
    """mlx's mode of this name: 4-bit floats (E2M1) with 8-bit scales. `unpack`: blocks → codes, scales [n, groups]."""

    name: Literal["mxfp4", "nvfp4"]
    group: int
    unpack: Callable[[Blocks], tuple[U8, U8]]
    bits: int = 4


@dataclass(frozen=True, slots=True)
class Coded:
    """w = factor * half * scale * value, less half[1] * minimum where there are minima.

    A value is code - offset, or values[code]. `scales`: "i8" a signed byte by group; "u4" a byte by group, scale below
    and minimum above; "none" the half alone. Halves lie by `block` columns, two where there are minima.
    `unpack`: blocks → codes [n, block], bytes [n, block / group] or None, halves [n, 1 or 2].
    """

    bits: int
    group: int
    block: int
    scales: Literal["i8", "u4", "none"]
    unpack: Callable[[Blocks], tuple[U8, NDArray[Any] | None, NDArray[np.float16]]]
    offset: int = 0
    values: tuple[int, ...] = ()
    factor: float = 1.0

    @property
    def n_halves(self) -> int:
        return 2 if self.scales == "u4" else 1


def _d(blocks: Blocks, name: str = "d") -> F32:
    """A block's own float: float32 [n, 1]."""
    return blocks[name].astype(np.float32)[:, None]


# --- affine: a scale and an offset


def _simple(codes: U8, blocks: Blocks, offset: int) -> tuple[U8, F32, F32]:
    d = _d(blocks)
    return codes, d, d * np.float32(-offset)


def _q4(blocks: Blocks) -> U8:
    return planes(blocks["qs"], 16, 4).reshape(-1, 32)


def _q5(blocks: Blocks) -> U8:
    return _q4(blocks) | (np.unpackbits(blocks["qh"], axis=1, bitorder="little") << np.uint8(4))


def _q8(blocks: Blocks) -> U8:
    """Signed bytes plus 128."""
    return blocks["qs"].view(np.uint8) ^ np.uint8(128)


def _q8_k(blocks: Blocks) -> tuple[U8, F32, F32]:
    d = np.repeat(_d(blocks), 2, axis=1)
    return _q8(blocks), d, d * np.float32(-128)


def _q1_0(blocks: Blocks) -> tuple[U8, F32, F32]:
    d = _d(blocks)
    return planes(blocks["qs"], 1, 1).reshape(-1, 128), d + d, -d


def _q2_0(blocks: Blocks) -> tuple[U8, F32, F32]:
    return _simple(planes(blocks["qs"], 1, 2).reshape(-1, 64), blocks, 1)


def _ternary(codes: U8, blocks: Blocks) -> tuple[U8, F32, F32]:
    d = np.repeat(_d(blocks), 2, axis=1)
    return codes, d, -d


def _tq1_0(blocks: Blocks) -> tuple[U8, F32, F32]:
    qs, digits = blocks["qs"], tq1_0.digits
    return _ternary(np.concatenate([digits(qs[:, :32], 5), digits(qs[:, 32:], 5), digits(blocks["qh"], 4)], 1), blocks)


def _k_scales(blocks: Blocks) -> tuple[F32, F32]:
    scales, mins = k_scales_mins(blocks["scales"])
    return _d(blocks) * scales.astype(np.float32), -(_d(blocks, "dmin") * mins.astype(np.float32))


def _q4_k(blocks: Blocks) -> tuple[U8, F32, F32]:
    return planes(blocks["qs"], 32, 4).reshape(-1, 256), *_k_scales(blocks)


def _q5_k(blocks: Blocks) -> tuple[U8, F32, F32]:
    codes = planes(blocks["qs"], 32, 4) | (planes(blocks["qh"], 32, 1) << np.uint8(4))
    return codes.reshape(-1, 256), *_k_scales(blocks)


def _iq1_s(blocks: Blocks) -> tuple[U8, F32, F32]:
    qh = blocks["qh"]
    high = (qh[:, :, None] >> np.arange(0, 12, 3, dtype=np.uint16)) & np.uint16(7)
    q = codebook("IQ1_S")[blocks["qs"].reshape(-1, 8, 4) | (high << np.uint16(8))]
    shift = np.where(qh & np.uint16(0x8000), np.float32(-1.125), np.float32(-0.875))
    scale = _d(blocks) * (2 * ((qh >> np.uint16(12)) & np.uint16(7)) + 1).astype(np.float32)
    return (q + np.int8(1)).view(np.uint8).reshape(-1, 256), scale, scale * shift


def _iq3_s(blocks: Blocks) -> tuple[U8, F32, F32]:
    high = planes(blocks["qh"], 1, 1).reshape(-1, 64).astype(np.uint16) << np.uint16(8)
    magnitudes = codebook("IQ3_S")[blocks["qs"] | high].reshape(-1, 256)  # odd, 1 to 15
    scale = _d(blocks) * (1 + 2 * planes(blocks["scales"], 1, 4).reshape(-1, 8)).astype(np.float32)
    signed = magnitudes * signs(blocks["signs"]).reshape(-1, 256).astype(np.int8)
    return ((signed + np.int8(15)) >> np.int8(1)).view(np.uint8), 2 * scale, -15 * scale


AFFINE = {
    "Q4_0": Affine(4, 32, lambda b: _simple(_q4(b), b, 8)),
    "Q4_1": Affine(4, 32, lambda b: (_q4(b), _d(b), _d(b, "m"))),
    "Q5_0": Affine(5, 32, lambda b: _simple(_q5(b), b, 16)),
    "Q5_1": Affine(5, 32, lambda b: (_q5(b), _d(b), _d(b, "m"))),
    "Q8_0": Affine(8, 32, lambda b: _simple(_q8(b), b, 128)),
    "Q8_1": Affine(8, 32, lambda b: _simple(_q8(b), b, 128)),
    "Q8_K": Affine(8, 128, _q8_k),
    "Q1_0": Affine(1, 128, _q1_0),
    "Q2_0": Affine(2, 64, _q2_0),
    "TQ1_0": Affine(2, 128, _tq1_0),
    "TQ2_0": Affine(2, 128, lambda b: _ternary(planes(b["qs"], 32, 2).reshape(-1, 256), b)),
    "Q4_K": Affine(4, 32, _q4_k),
    "Q5_K": Affine(5, 32, _q5_k),
    "IQ1_S": Affine(2, 32, _iq1_s),
    "IQ3_S": Affine(4, 32, _iq3_s),
}


# --- mlx's modes


def _mxfp4(blocks: Blocks) -> tuple[U8, U8]:
    """mlx reads exponent 255 as infinity, ggml as 2^127; the largest finite exponent replaces it."""
    return planes(blocks["qs"], 16, 4).reshape(-1, 32), np.minimum(blocks["e"], np.uint8(254))[:, None]


def _nvfp4(blocks: Blocks) -> tuple[U8, U8]:
    """ggml's scales are unsigned; its NaN pattern is 0."""
    scales = blocks["d"] & np.uint8(127)
    return planes(blocks["qs"], 8, 4).reshape(-1, 64), np.where(scales == 127, np.uint8(0), scales)


MODES = {"MXFP4": Mode("mxfp4", 32, _mxfp4), "NVFP4": Mode("nvfp4", 16, _nvfp4)}
assert mxfp4.VALUES[7] == 12  # codes are E2M1 in ggml as in mlx


# --- coded: groups of 16, tables of values

_IQ1 = (-9, -7, -1, 1, 7, 9)  # 8 q + shift
_IQ2 = (8, 25, 43, -8, -25, -43)
_IQ3 = (4, 12, 20, 28, 36, 44, 52, 62, -4, -12, -20, -28, -36, -44, -52, -62)
_IQ4 = tuple(int(v) for v in iq4_nl.VALUES)


def _codes(values: tuple[int, ...], numbers: NDArray[Any]) -> U8:
    """Indices into a table of small integers: [n, block] of any integers or integral floats."""
    table = np.zeros(256, np.uint8)
    table[np.array(values) & 255] = np.arange(len(values))
    return table[numbers.astype(np.int8).view(np.uint8)]


def _half(blocks: Blocks) -> NDArray[np.float16]:
    return blocks["d"][:, None]


def _q2_k(blocks: Blocks) -> tuple[U8, NDArray[Any], NDArray[np.float16]]:
    halves = np.stack([blocks["d"], blocks["dmin"]], axis=1)
    return planes(blocks["qs"], 32, 2).reshape(-1, 256), blocks["scales"], halves


def _q3_k(blocks: Blocks) -> tuple[U8, NDArray[Any], NDArray[np.float16]]:
    packed = blocks["scales"]
    high = planes(packed[:, 8:], 4, 2).reshape(-1, 16) << np.uint8(4)
    scales = (planes(packed[:, :8], 8, 4).reshape(-1, 16) | high).astype(np.int8) - np.int8(32)
    codes = planes(blocks["qs"], 32, 2) | (planes(blocks["hmask"], 32, 1) << np.uint8(2))
    return codes.reshape(-1, 256), scales, _half(blocks)


def _q6_k(blocks: Blocks) -> tuple[U8, NDArray[Any], NDArray[np.float16]]:
    low = planes(blocks["ql"], 64, 4).reshape(-1, 8, 32)
    codes = low | (planes(blocks["qh"], 32, 2) << np.uint8(4))
    return codes.reshape(-1, 256), blocks["scales"], _half(blocks)


def _iq1_m(blocks: Blocks) -> tuple[U8, NDArray[Any], NDArray[np.float16]]:
    qh, scales = planes(blocks["qh"], 1, 4).reshape(-1, 32).astype(np.uint16), blocks["scales"]
    q = codebook("IQ1_S")[blocks["qs"] | ((qh & np.uint16(7)) << np.uint16(8))]  # [n, 32, 8]
    shift = np.where(qh & np.uint16(8), np.int8(-1), np.int8(1))
    scale = ((scales[:, :, None] >> np.arange(0, 12, 3, dtype=np.uint16)) & np.uint16(7)).reshape(-1, 16)
    nibbles = (scales >> np.uint16(12)) << np.arange(0, 16, 4, dtype=np.uint16)
    half = np.bitwise_or.reduce(nibbles, axis=1).view(np.float16)[:, None]
    return _codes(_IQ1, (8 * q + shift[:, :, None]).reshape(-1, 256)), (2 * scale + 1).astype(np.int8), half


def _iq2_xxs(blocks: Blocks) -> tuple[U8, NDArray[Any], NDArray[np.float16]]:
    qs = blocks["qs"].reshape(-1, 8, 2)
    index = np.ascontiguousarray(qs[:, :, 0]).view(np.uint8).reshape(-1, 8, 4)
    sign = (qs[:, :, 1, None] >> np.arange(0, 28, 7, dtype=np.uint32)) & np.uint32(127)
    numbers = codebook("IQ2_XXS")[index] * even_signs(sign.astype(np.uint8))
    scales = (2 * (qs[:, :, 1] >> np.uint32(28)) + 1).astype(np.int8)
    return _codes(_IQ2, numbers.reshape(-1, 256)), scales, _half(blocks)


def _odd_scales(blocks: Blocks) -> NDArray[np.int8]:
    """2 s + 1 of 4-bit scales, the even groups' below."""
    return (2 * planes(blocks["scales"], 1, 4).reshape(len(blocks), -1) + 1).astype(np.int8)


def _iq2_xs(blocks: Blocks) -> tuple[U8, NDArray[Any], NDArray[np.float16]]:
    qs = blocks["qs"]
    numbers = codebook("IQ2_XS")[qs & np.uint16(511)] * even_signs((qs >> np.uint16(9)).astype(np.uint8))
    return _codes(_IQ2, numbers.reshape(-1, 256)), _odd_scales(blocks), _half(blocks)


def _iq2_s(blocks: Blocks) -> tuple[U8, NDArray[Any], NDArray[np.float16]]:
    high = planes(blocks["qh"], 1, 2).reshape(-1, 32).astype(np.uint16) << np.uint16(8)
    numbers = codebook("IQ2_S")[blocks["qs"] | high] * signs(blocks["signs"])
    return _codes(_IQ2, numbers.reshape(-1, 256)), _odd_scales(blocks), _half(blocks)


def _iq3_xxs(blocks: Blocks) -> tuple[U8, NDArray[Any], NDArray[np.float16]]:
    packed = blocks["scales_and_signs"]
    sign = (packed[:, :, None] >> np.arange(0, 28, 7, dtype=np.uint32)) & np.uint32(127)
    numbers = codebook("IQ3_XXS")[blocks["qs"]].reshape(-1, 8, 4, 8) * even_signs(sign.astype(np.uint8))
    scales = (2 * (packed >> np.uint32(28)) + 1).astype(np.int8)
    return _codes(_IQ3, numbers.reshape(-1, 256)), scales, _half(blocks)


def _iq4_xs(blocks: Blocks) -> tuple[U8, NDArray[Any], NDArray[np.float16]]:
    low = planes(blocks["scales_l"], 1, 4).reshape(-1, 8)
    high = (blocks["scales_h"][:, None] >> np.arange(0, 16, 2, dtype=np.uint16)).astype(np.uint8) & np.uint8(3)
    scales = (low | (high << np.uint8(4))).astype(np.int8) - np.int8(32)
    return planes(blocks["qs"], 16, 4).reshape(-1, 256), scales, _half(blocks)


CODED = {
    "Q2_K": Coded(2, 16, 256, "u4", _q2_k),
    "Q3_K": Coded(3, 16, 256, "i8", _q3_k, offset=4),
    "Q6_K": Coded(6, 16, 256, "i8", _q6_k, offset=32),
    "IQ1_M": Coded(3, 16, 256, "i8", _iq1_m, values=_IQ1, factor=0.125),
    "IQ2_XXS": Coded(3, 32, 256, "i8", _iq2_xxs, values=_IQ2, factor=0.125),
    "IQ2_XS": Coded(3, 16, 256, "i8", _iq2_xs, values=_IQ2, factor=0.125),
    "IQ2_S": Coded(3, 16, 256, "i8", _iq2_s, values=_IQ2, factor=0.125),
    "IQ3_XXS": Coded(4, 32, 256, "i8", _iq3_xxs, values=_IQ3, factor=0.25),
    "IQ4_NL": Coded(4, 32, 32, "none", lambda b: (_q4(b), None, _half(b)), values=_IQ4),
    "IQ4_XS": Coded(4, 32, 256, "i8", _iq4_xs, values=_IQ4),
}

LAYOUTS: dict[str, Affine | Mode | Coded] = {**AFFINE, **MODES, **CODED}
"""By format; formats not listed are kept as floats."""
