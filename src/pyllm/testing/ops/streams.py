"""Sums of streams: cases."""

from __future__ import annotations

from pyllm.program import Value
from pyllm.program.ops.elementwise import Add
from pyllm.program.ops.linear import Linear
from pyllm.program.ops.select import Slice
from pyllm.program.ops.streams import StreamMix
from pyllm.testing.models import Builder, Record


def _mix(n: int, m: int, *, by_token: bool, fixed: bool, more: int = 0) -> Record:
    """n streams that are x's columns, and `more` that are x's first columns, become m."""

    def record(b: Builder, x: Value) -> Value:
        width, pairs = x.width // n, m * (n + more)
        coefs = b(Linear(x=x, weight=b.t("coefs", pairs, x.width))) if by_token else None
        weight = b.t("fixed.scale", m, n + more) if fixed else None
        y = b(Slice(x=b(Add(a=x, b=x)), start=0, width=more * width)) if more else None
        return b(StreamMix(x=x, y=y, coefs=coefs, weight=weight, width=width))

    return record


CASES: dict[str, Record] = {
    "by_token": _mix(4, 4, by_token=True, fixed=False),
    "fixed": _mix(2, 3, by_token=False, fixed=True),
    "both": _mix(4, 4, by_token=True, fixed=True, more=1),
    "narrow": _mix(16, 2, by_token=True, fixed=True, more=3),
    "to_one": _mix(4, 1, by_token=True, fixed=False),
}
