"""Type numbers of GGUF files: of metadata values, and of tensors with their block sizes.

Source: the GGUF specification (docs/gguf.md in the ggml repository) and `enum ggml_type` in ggml.h.
"""

from __future__ import annotations

from enum import IntEnum

from pyllm.errors import FormatError
from pyllm.records import dataclass


class ValueType(IntEnum):
    """Type of a metadata value, as stored (uint32)."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


@dataclass(frozen=True, slots=True)
class GGMLType:
    """A tensor type: `block_size` consecutive weights of a row are stored in `block_bytes` bytes."""

    id: int
    name: str
    block_size: int
    block_bytes: int

    def n_bytes(self, n_weights: int) -> int:
        """Bytes of `n_weights` weights, a multiple of `block_size`."""
        return n_weights // self.block_size * self.block_bytes


TYPES: tuple[GGMLType, ...] = tuple(
    GGMLType(*row)
    for row in (
        (0, "F32", 1, 4),
        (1, "F16", 1, 2),
        (2, "Q4_0", 32, 18),
        (3, "Q4_1", 32, 20),
        (6, "Q5_0", 32, 22),
        (7, "Q5_1", 32, 24),
        (8, "Q8_0", 32, 34),
        (9, "Q8_1", 32, 36),
        (10, "Q2_K", 256, 84),
        (11, "Q3_K", 256, 110),
        (12, "Q4_K", 256, 144),
        (13, "Q5_K", 256, 176),
        (14, "Q6_K", 256, 210),
        (15, "Q8_K", 256, 292),
        (16, "IQ2_XXS", 256, 66),
        (17, "IQ2_XS", 256, 74),
        (18, "IQ3_XXS", 256, 98),
        (19, "IQ1_S", 256, 50),
        (20, "IQ4_NL", 32, 18),
        (21, "IQ3_S", 256, 110),
        (22, "IQ2_S", 256, 82),
        (23, "IQ4_XS", 256, 136),
        (24, "I8", 1, 1),
        (25, "I16", 1, 2),
        (26, "I32", 1, 4),
        (27, "I64", 1, 8),
        (28, "F64", 1, 8),
        (29, "IQ1_M", 256, 56),
        (30, "BF16", 1, 2),
        (34, "TQ1_0", 256, 54),
        (35, "TQ2_0", 256, 66),
        (39, "MXFP4", 32, 17),
        (40, "NVFP4", 64, 36),
        (41, "Q1_0", 128, 18),
        (42, "Q2_0", 64, 18),
    )
)
"""All tensor types of ggml, including those that pyllm cannot decode."""

REMOVED: dict[int, str] = {
    4: "Q4_2",
    5: "Q4_3",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}
"""Types removed from ggml; files with them must be converted again."""

BY_ID: dict[int, GGMLType] = {t.id: t for t in TYPES}
BY_NAME: dict[str, GGMLType] = {t.name: t for t in TYPES}


def by_name(name: str) -> GGMLType:
    """The tensor type that ggml calls `name` ("Q4_K"). Raises FormatError if there is none."""
    try:
        return BY_NAME[name]
    except KeyError:
        raise FormatError(f"{name!r} is not a tensor format; known are {', '.join(BY_NAME)}") from None
