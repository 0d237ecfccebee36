"""Matrix products: cases."""

from __future__ import annotations

from pyllm.program import Value
from pyllm.program.ops.linear import HeadLinear, Linear
from pyllm.testing.models import Builder, Record
from pyllm.testing.ops import FormatCase


def _product(rows: int, *, bias: bool = False) -> Record:
    def record(b: Builder, x: Value) -> Value:
        return b(Linear(x=x, weight=b.t("w", rows, x.width), bias=b.t("b", rows) if bias else None))

    return record


def _by_head(n_heads: int, rows: int) -> Record:
    def record(b: Builder, x: Value) -> Value:
        shape = (n_heads, rows, x.width // n_heads)[n_heads == 1 :]
        return b(HeadLinear(x=x, weight=b.t("w", *shape), n_heads=n_heads))

    return record


CASES: dict[str, Record] = {
    "plain": _product(80),
    "bias": _product(80, bias=True),
    "ragged_rows": _product(37, bias=True),
    "one_row": _product(1),
    "heads": _by_head(4, 48),
    "narrow_heads": _by_head(16, 16),
    "one_head": _by_head(1, 80),
}

FORMATS = {
    "even": FormatCase(_product(96, bias=True)),
    "odd": FormatCase(_product(37, bias=True)),
    "heads": FormatCase(_by_head(2, 32)),
}
