"""Arithmetic on single numbers: cases."""

from __future__ import annotations

from pyllm.program.ops.elementwise import Add, MulWeight, Scale, SoftCap
from pyllm.testing.models import Record

CASES: dict[str, Record] = {
    "add": lambda b, x: b(Add(a=x, b=b(Scale(x=x, factor=-0.25)))),
    "scale": lambda b, x: b(Scale(x=x, factor=1.75)),
    "mul_columns": lambda b, x: b(MulWeight(x=x, weight=b.t("w.scale", x.width))),
    "mul_heads": lambda b, x: b(MulWeight(x=x, weight=b.t("w.scale", 4))),
    "mul_all": lambda b, x: b(MulWeight(x=x, weight=b.t("w.scale", 1))),
    "soft_cap": lambda b, x: b(SoftCap(x=b(Scale(x=x, factor=20.0)), cap=30.0)),
}
