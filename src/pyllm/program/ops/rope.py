"""Rotary positions."""

from __future__ import annotations

from pyllm.errors import ModelError
from pyllm.program.op import Op, Shapes
from pyllm.program.values import Value
from pyllm.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope(Op):
    """Rotary positions on the first 2 * len(inv_freq) columns of each head of `head_dim` columns.

    angle[t, i] = position[t] * inv_freq[i]; cos and sin are both multiplied by `mscale` (YaRN, longrope).
    Pairs are (i, i + n_rot/2), or (2i, 2i + 1) where `interleaved`. Scalings are already in inv_freq.
    """

    x: Value
    head_dim: int
    inv_freq: tuple[float, ...]
    mscale: float = 1.0
    interleaved: bool = False

    def infer(self, shapes: Shapes) -> int:
        n_rot, width = 2 * len(self.inv_freq), self.x.width
        if self.head_dim < 1 or width % self.head_dim or not 0 < n_rot <= self.head_dim:
            raise ModelError(f"cannot rotate {n_rot} of {self.head_dim} columns a head, {width} in all")
        shapes.every_token("positions belong to tokens", self.x)
        return width
