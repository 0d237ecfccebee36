"""How weights lie in memory for the kernels: panels of 16 rows side by side, so that a vector lane is an output row.

Integer layouts divide the columns into groups of 32. A panel is all its groups' integers, then all its blocks' scales:

    integers of one group   four loads of 64 bytes; byte 4 r + j of load h: row r, column 4 h + j in the low nibble and
                            16 + 4 h + j in the high one. 8-bit layouts have eight loads of plain bytes instead.
    5-bit layouts           64 bytes more: bit h of byte 4 r + j is the fifth bit of column 4 h + j, bit 4 + h
                            that of column 16 + 4 h + j
    6-bit layouts           128 bytes more: bits 2 h, 2 h + 1 of byte 4 r + j are the top bits of column 4 h + j in the
                            first 64 bytes, of column 16 + 4 h + j in the second
    scales of one block     as `Layout` says, each over the 16 rows

Integers are unsigned; weight = scale * (integer - offset) + minimum. Float layouts are [columns][16 rows] as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

PANEL = 16
GROUP = 32

WIDE_PAIRS, WIDE_STRETCH, WIDE_TOKENS = 8, 48, 512
"""Most pairs of panels, groups of columns and tokens that a wide kernel (`kernels/wide.py`) works on at a time."""
WIDE_BUFFER = 2 * WIDE_PAIRS * WIDE_STRETCH * 1024
"""Bytes of scratch memory for decoded weights; then come tile shapes, then sums of gated products."""
WIDE_SHAPES = 64
WIDE_SCRATCH = WIDE_BUFFER + WIDE_SHAPES
GATED_SCRATCH = WIDE_SCRATCH + WIDE_TOKENS * WIDE_PAIRS * 128


@dataclass(frozen=True, slots=True)
class Layout:
    """One packed layout; `name` is what kernels are parametrized by."""

    name: str
    bits: int
    """Bits of one stored integer, or of one float (16, 32)."""
    offset: int = 0
    """Subtracted from each integer."""
    minima: bool = False
    """Scales come with minima."""
    groups_per_block: int = 1
    """8: super-blocks of 256 columns, 8-bit scales (and minima) by group times float16 by block.
    1: float16 by group."""
    scale_columns: int = 32
    """Columns that share a scale: 32, or 16 (signed 8-bit, in super-blocks only)."""

    @property
    def is_float(self) -> bool:
        return self.bits in (16, 32)

    @property
    def block_columns(self) -> int:
        return 1 if self.is_float else GROUP * self.groups_per_block

    @property
    def group_bytes(self) -> int:
        """Bytes of one group's integers, 16 rows (of one column, in float layouts)."""
        return PANEL * (self.bits // 8 if self.is_float else self.bits * GROUP // 8)

    @property
    def scale_bytes(self) -> int:
        """Bytes of one block's scales, 16 rows."""
        if self.is_float:
            return 0
        n = 2 if self.minima else 1
        by_group = 0 if self.groups_per_block == 1 else self.groups_per_block * GROUP // self.scale_columns
        return PANEL * n * (2 + by_group)

    def panel_bytes(self, columns: int) -> int:
        """Bytes of one panel; a multiple of 64."""
        if columns % self.block_columns:
            raise ValueError(f"{columns} columns are not whole blocks of {self.block_columns}")
        groups = columns if self.is_float else columns // GROUP
        n = groups * self.group_bytes + columns // self.block_columns * self.scale_bytes
        return (n + 63) // 64 * 64

    def matrix_bytes(self, rows: int, columns: int) -> int:
        return (rows + PANEL - 1) // PANEL * self.panel_bytes(columns)


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("f32", 32),
        Layout("f16", 16),
        Layout("bf16", 16),
        Layout("q4_0", 4, offset=8),
        Layout("q4_1", 4, minima=True),
        Layout("q5_0", 5, offset=16),
        Layout("q5_1", 5, minima=True),
        Layout("q8_0", 8, offset=128),
        Layout("q4_k", 4, minima=True, groups_per_block=8),
        Layout("q5_k", 5, minima=True, groups_per_block=8),
        Layout("q6_k", 6, offset=32, groups_per_block=8, scale_columns=16),
    )
}
assert LAYOUTS["q4_k"].scale_bytes == 16 * (2 + 2 + 8 + 8)
assert LAYOUTS["q6_k"].scale_bytes == 16 * (2 + 16)
assert LAYOUTS["q4_1"].panel_bytes(32) == 16 * 20
assert 8 * LAYOUTS["q6_k"].group_bytes + LAYOUTS["q6_k"].scale_bytes == 16 * 210
