"""Factors by position: cases."""

from __future__ import annotations

from pyllm.program.ops.position import PositionScale
from pyllm.testing.models import Record

CASES: dict[str, Record] = {
    "scale": lambda b, x: b(PositionScale(x=x, factors=(1.0, 0.5, 3.0, -2.0), length=8)),
    "offset": lambda b, x: b(PositionScale(x=x, factors=(1.0, 0.25), length=16, offset=1)),
}
