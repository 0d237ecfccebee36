"""Scalar products: cases."""

from __future__ import annotations

from pyllm.program.ops.dot import Dot
from pyllm.program.ops.elementwise import MulWeight, Scale
from pyllm.program.ops.select import Slice
from pyllm.testing.models import Record


def _dot(group: int) -> Record:
    return lambda b, x: b(Dot(a=x, b=b(MulWeight(x=x, weight=b.t("w.scale", x.width))), group=group))


CASES: dict[str, Record] = {
    "heads": _dot(16),
    "whole_row": _dot(64),
    "narrow": _dot(4),
    "odd": lambda b, x: b(Dot(a=b(Slice(x=x, start=0, width=60)), b=b(Slice(x=x, start=3, width=60)), group=20)),
    "columns": lambda b, x: b(Dot(a=x, b=b(Scale(x=x, factor=0.5)), group=1)),
}
