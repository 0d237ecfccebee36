"""The tokens before: cases."""

from __future__ import annotations

from pyllm.program.ops.shift import TokenShift
from pyllm.testing.models import Record

CASES: dict[str, Record] = {
    "plain": lambda b, x: b(TokenShift(x=x)),
    "twice": lambda b, x: b(TokenShift(x=b(TokenShift(x=x)))),
}
