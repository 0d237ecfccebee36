"""Rows of a table: cases."""

from __future__ import annotations

from pyllm.program import Value
from pyllm.program.ops.elementwise import Add
from pyllm.program.ops.embed import Embed
from pyllm.testing.models import Builder, Record
from pyllm.testing.ops import FormatCase


def _scaled(b: Builder, x: Value) -> Value:
    return b(Add(a=x, b=b(Embed(table=b.t("other", 96, x.width), scale=3.5))))


def _positions(b: Builder, x: Value) -> Value:
    return b(Add(a=x, b=b(Embed(table=b.t("positions", 64, x.width), scale=0.5, of_positions=True))))


CASES: dict[str, Record] = {"plain": lambda b, x: x, "scaled": _scaled, "positions": _positions}

FORMATS = {"table": FormatCase(lambda b, x: x, width=256, in_f32=(), n_products=0)}
