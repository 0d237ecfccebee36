"""Constants shared by the attention kernels and their plan; imports no numba."""

from __future__ import annotations

from pyllm.records import dataclass

BLOCK = 128
"""Positions whose scores are computed at a time."""
PART, MAX_PARTS = 512, 16
"""Positions of a part at least, and parts at most, in which a generated token sees its context."""
CAUSAL, CHUNKED, WHOLE, SOURCE = range(4)
"""Numbers of what tokens see, in the order of `REACHES` of `pyllm.program.ops.attention`."""
GENERATED = 26
"""Slot of the STEP block: how many tokens are generated; they come first, and each is a tile of its own."""
_LIST = 8 * (BLOCK // 16 + 2)


def tile_rows(group: int, wide: bool) -> int:
    """Rows of scratch for a tile; a tile has at least one token, with all query heads of its kv head."""
    return (max(TILE_ROWS[wide], group) + 63) // 32 * 32


TILE_ROWS = {False: 48, True: 96}
"""Most rows (tokens x query heads) that share reads of the cache, in usual and in AMX kernels."""


@dataclass(frozen=True, slots=True)
class Scratch:
    """Offsets in a thread's scratch. Rows of queries, outputs and scores are `ld` bytes apart."""

    width: int
    """At least head_dim and v_head_dim; a multiple of 128."""
    wide: bool

    iota = 0
    alpha = 64
    """Factors of the outputs so far, for 32 rows."""
    keys = 192
    """Addresses of a block's keys, for each 16 positions; then of its values, and of what to fetch ahead."""
    values = keys + _LIST
    keys_ahead = values + _LIST
    values_ahead = keys_ahead + _LIST
    tile_shapes = 512
    scores = 576

    @property
    def ld(self) -> int:
        return 4 * (self.width + 16)

    @property
    def weights(self) -> int:
        """bfloat16 [2][BLOCK / 32][16 rows][32 positions]."""
        return self.scores + 32 * self.ld

    @property
    def wide_keys(self) -> int:
        """bfloat16 [BLOCK / 32][dimensions / 32][2][2][16 pairs][16 positions][2]: of 32 dimensions two groups of 16
        positions, then what rounding those down has lost."""
        return self.weights + 64 * BLOCK

    @property
    def wide_values(self) -> int:
        """bfloat16 [dimensions / 32][BLOCK / 32][2][16 pairs][16 dimensions][2]."""
        return self.wide_keys + 4 * BLOCK * self.width

    @property
    def rows(self) -> int:
        """Queries, outputs, vectors of sums, maxima and, in wide kernels, queries in two bfloat16 halves."""
        return self.wide_values + 2 * BLOCK * self.width if self.wide else self.weights

    def n_bytes(self, n_rows: int) -> int:
        return self.rows + n_rows * (2 * self.ld + 128 + (4 * self.width if self.wide else 0))


assert Scratch.values_ahead + _LIST <= Scratch.tile_shapes
