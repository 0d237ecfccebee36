"""Memory layout of packed weights: panels of 16 rows side by side, so that a vector lane is an output row.

Integer layouts divide the columns into groups of 32, a group into 8 quads of 4 columns. A panel is all its groups'
integers, then all its blocks' scales. Byte 4 r + j of 64 belongs to row r and to column j of some quads:

    8 bits    eight times 64 bytes, one a quad
    4 bits    four times 64 bytes: quad h in the low nibbles of the h-th, quad 4 + h in the high ones
    3 bits    three times 64 bytes, as if of 4 bits; the top bits of their nibbles are those of a fourth, one bit each
    2 bits    twice 64 bytes: quads 0 to 3, lowest bits first, then quads 4 to 7
    1 bit     64 bytes: bit c is quad c
    5, 6      the low four bits, then those above them as 1 bit or as 2
    scales    as `Layout` says, each over the 16 rows

What is stored is unsigned: integers, or indices of a table of values. Float layouts are [columns][16 rows] as they are.
"""

from __future__ import annotations

from dataclasses import fields

from pyllm.backends import layouts
from pyllm.backends.layouts import GROUP
from pyllm.records import dataclass

PANEL = 16

WIDE_PAIRS, WIDE_STRETCH, WIDE_TOKENS = 8, 48, 512
"""Most pairs of panels, groups of columns and tokens that a wide kernel (`kernels/wide.py`) works on at a time."""
WIDE_BUFFER = 2 * WIDE_PAIRS * WIDE_STRETCH * 1024
"""Bytes of scratch memory for decoded weights; then come tile shapes, then sums of gated products."""
WIDE_SHAPES = 64
WIDE_SCRATCH = WIDE_BUFFER + WIDE_SHAPES
GATED_SCRATCH = WIDE_SCRATCH + WIDE_TOKENS * WIDE_PAIRS * 128


@dataclass(frozen=True, slots=True)
class Layout(layouts.Layout):
    """A format's facts, and the sizes of its panels."""

    @property
    def group_bytes(self) -> int:
        """Bytes of one group's integers, 16 rows (of one column, in float layouts)."""
        return PANEL * (self.bits // 8 if self.is_float else self.bits * GROUP // 8)

    @property
    def byte_scale_bytes(self) -> int:
        """Bytes of those and their minima, 16 rows; the floats by block come after them."""
        return PANEL * self.byte_scales * (2 if self.minima and self.scales != "u4" else 1)

    @property
    def scale_bytes(self) -> int:
        """Bytes of one block's scales, 16 rows."""
        if self.is_float:
            return 0
        floats = 0 if self.scales == "e4m3" else 2 if self.minima else 1
        return self.byte_scale_bytes + 2 * PANEL * floats

    @property
    def block_bytes(self) -> int:
        """Bytes of one block, 16 rows: integers and scales."""
        return self.groups_per_block * self.group_bytes + self.scale_bytes

    def panel_bytes(self, columns: int) -> int:
        """Bytes of one panel; a multiple of 64."""
        if columns % self.block_columns:
            raise ValueError(f"{columns} columns are not whole blocks of {self.block_columns}")
        return (columns // self.block_columns * self.block_bytes + 63) // 64 * 64

    def matrix_bytes(self, rows: int, columns: int) -> int:
        return (rows + PANEL - 1) // PANEL * self.panel_bytes(columns)


LAYOUTS = {
    name: Layout(**{f.name: getattr(facts, f.name) for f in fields(facts)}) for name, facts in layouts.LAYOUTS.items()
}
"""By format, in lower case."""
assert LAYOUTS["q4_k"].scale_bytes == 16 * (2 + 2 + 8 + 8)
assert LAYOUTS["q6_k"].scale_bytes == 16 * (2 + 16)
assert LAYOUTS["q2_k"].block_bytes == 16 * 84
assert LAYOUTS["q4_1"].panel_bytes(32) == 16 * 20
assert LAYOUTS["q6_k"].block_bytes == 16 * 210
assert LAYOUTS["nvfp4"].block_bytes == 16 * 36
assert LAYOUTS["q1_0"].block_bytes == 16 * 18
