"""Factors by position."""

from __future__ import annotations

import math

from pyllm.errors import ModelError
from pyllm.program.op import Op, Shapes
from pyllm.program.values import Value
from pyllm.records import dataclass

_MOST_FACTORS = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionScale(Op):
    """out = x * factors[(p + offset) // length] for a token at position p; the last factor also beyond the factors.

    Llama 4 and Ministral 3 scale queries so, beyond their first `length` positions (`log_factors`).
    """

    x: Value
    factors: tuple[float, ...]
    length: int
    offset: int = 0

    def infer(self, shapes: Shapes) -> int:
        if self.length < 1 or self.offset < 0 or not 0 < len(self.factors) <= _MOST_FACTORS:
            raise ModelError(f"{len(self.factors)} factors, one each {self.length} positions, are not usable")
        shapes.every_token("positions belong to tokens", self.x)
        return self.x.width


def log_factors(scale: float, length: int, offset: int, n_ctx: int) -> tuple[float, ...]:
    """1 + scale * log(1 + i) for each i that a position below `n_ctx` needs. Raises ModelError for too many."""
    n = (n_ctx - 1 + offset) // length + 1
    if n > _MOST_FACTORS:
        raise ModelError(f"queries that are scaled every {length} positions do not go with a context of {n_ctx}")
    return tuple(1 + scale * math.log(1 + i) for i in range(n))
