"""Matrix products: cases."""

from __future__ import annotations

from pyllm.program import Value
from pyllm.program.ops.linear import Linear
from pyllm.testing.models import Builder, Record
from pyllm.testing.ops import FormatCase


def _product(rows: int, *, bias: bool = False) -> Record:
    def record(b: Builder, x: Value) -> Value:
        return b(Linear(x=x, weight=b.t("w", rows, x.width), bias=b.t("b", rows) if bias else None))

    return record


CASES: dict[str, Record] = {
    "plain": _product(80),
    "bias": _product(80, bias=True),
    "ragged_rows": _product(37, bias=True),
    "one_row": _product(1),
}

FORMATS = {"even": FormatCase(_product(96, bias=True)), "odd": FormatCase(_product(37, bias=True))}
