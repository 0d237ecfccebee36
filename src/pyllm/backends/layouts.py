"""Each format as small integers with scales: the facts that the packed layouts of all backends share.

A group is 32 columns of a row. Formats with codebooks (IQ1, IQ2, IQ3) are looked up when weights are packed, which
leaves integers with few values. The memory layout of integers and scales is each backend's own.
"""

from __future__ import annotations

from pyllm.records import dataclass

GROUP = 32
"""Columns of a group."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The numbers of one format; `name` is what kernels are parametrized by.

    weight = factor * (scale * (step * integer - offset) + minimum), or factor * scale * values[integer].
    """

    name: str
    bits: int
    """Bits of one stored integer, or of one float (16, 32)."""
    offset: int = 0
    """Subtracted from each integer; added to each value, to make it an unsigned byte."""
    step: int = 1
    """What integers count by: 1 or 2."""
    values: tuple[int, ...] = ()
    """Values of the integers (8 of 3 bits, 16 of 4), where they are indices of a table."""
    minima: bool = False
    """Scales come with minima."""
    groups_per_block: int = 1
    scales: str = "f16"
    """f16, bf16: one float by block.
    i8: a signed byte by `scale_columns`, times a float16 by block; minima are unsigned bytes, with a float16 too.
    u4: so as well, but a byte is a scale in its low nibble and a minimum in its high one.
    e4m3: an unsigned 8-bit float by `scale_columns`, read as a 256th of itself; none by block."""
    scale_columns: int = GROUP
    """Columns that share a scale: 32 or 16."""
    factor: float = 1.0

    @property
    def is_float(self) -> bool:
        return self.bits in (16, 32)

    @property
    def block_columns(self) -> int:
        return 1 if self.is_float else GROUP * self.groups_per_block

    @property
    def byte_scales(self) -> int:
        """Scales of a block that are bytes, its minima not counted; 0 where it has one float."""
        return 0 if self.scales in ("f16", "bf16") else self.block_columns // self.scale_columns

    @property
    def largest(self) -> int:
        """The largest unsigned byte that kernels make of a stored integer."""
        return (max(self.values) + self.offset) if self.values else self.step * ((1 << self.bits) - 1)


_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_FP4 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)  # doubled
# Magnitudes of the codebooks, then the same negative: the top bit is the sign. The grids are gone when packed.
_IQ2 = (8, 25, 43, 0, -8, -25, -43, 0)
_IQ3 = (4, 12, 20, 28, 36, 44, 52, 62, -4, -12, -20, -28, -36, -44, -52, -62)
_IQ1 = (-7, 1, 9, 0, -9, -1, 7, 0)  # 8 * (-1, 0, 1) plus 1 or, with the top bit, minus 1

LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("f32", 32),
        Layout("f16", 16),
        Layout("bf16", 16),
        Layout("q1_0", 1, offset=1, step=2, groups_per_block=4),
        Layout("q2_0", 2, offset=1, groups_per_block=2),
        Layout("q4_0", 4, offset=8),
        Layout("q4_1", 4, minima=True),
        Layout("q5_0", 5, offset=16),
        Layout("q5_1", 5, minima=True),
        Layout("q8_0", 8, offset=128),
        Layout("q2_k", 2, minima=True, groups_per_block=8, scales="u4", scale_columns=16),
        Layout("q3_k", 3, offset=4, groups_per_block=8, scales="i8", scale_columns=16),
        Layout("q4_k", 4, minima=True, groups_per_block=8, scales="i8"),
        Layout("q5_k", 5, minima=True, groups_per_block=8, scales="i8"),
        Layout("q6_k", 6, offset=32, groups_per_block=8, scales="i8", scale_columns=16),
        Layout("tq1_0", 2, offset=1, groups_per_block=8),
        Layout("tq2_0", 2, offset=1, groups_per_block=8),
        Layout("mxfp4", 4, offset=12, values=_FP4, scales="bf16"),
        Layout("nvfp4", 4, offset=12, values=_FP4, groups_per_block=2, scales="e4m3", scale_columns=16, factor=128.0),
        Layout("iq1_s", 2, minima=True, groups_per_block=8, scales="i8", factor=0.125),
        Layout("iq1_m", 3, offset=9, values=_IQ1, groups_per_block=8, scales="i8", scale_columns=16, factor=0.125),
        Layout("iq2_xxs", 3, offset=43, values=_IQ2, groups_per_block=8, scales="i8", factor=0.125),
        Layout("iq2_xs", 3, offset=43, values=_IQ2, groups_per_block=8, scales="i8", scale_columns=16, factor=0.125),
        Layout("iq2_s", 3, offset=43, values=_IQ2, groups_per_block=8, scales="i8", scale_columns=16, factor=0.125),
        Layout("iq3_xxs", 4, offset=62, values=_IQ3, groups_per_block=8, scales="i8", factor=0.25),
        Layout("iq3_s", 4, offset=15, step=2, groups_per_block=8, scales="i8"),
        Layout("iq4_nl", 4, offset=127, values=_IQ4),
        Layout("iq4_xs", 4, offset=127, values=_IQ4, groups_per_block=8, scales="i8"),
    )
}
"""By format, in lower case."""
