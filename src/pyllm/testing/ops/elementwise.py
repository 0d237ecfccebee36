"""Arithmetic on single numbers: cases."""

from __future__ import annotations

from pyllm.program.ops.elementwise import Add, AddWeight, Clamp, MulWeight, Scale, SoftCap
from pyllm.testing.models import Record

CASES: dict[str, Record] = {
    "add": lambda b, x: b(Add(a=x, b=b(Scale(x=x, factor=-0.25)))),
    "scale": lambda b, x: b(Scale(x=x, factor=1.75)),
    "mul_columns": lambda b, x: b(MulWeight(x=x, weight=b.t("w.scale", x.width))),
    "mul_heads": lambda b, x: b(MulWeight(x=x, weight=b.t("w.scale", 4))),
    "mul_all": lambda b, x: b(MulWeight(x=x, weight=b.t("w.scale", 1))),
    "add_columns": lambda b, x: b(AddWeight(x=x, weight=b.t("w.bias", x.width))),
    "add_heads": lambda b, x: b(AddWeight(x=x, weight=b.t("w.bias", 4))),
    "clamp": lambda b, x: b(Clamp(x=b(Scale(x=x, factor=3.0)), most=1.5)),
    "soft_cap": lambda b, x: b(SoftCap(x=b(Scale(x=x, factor=20.0)), cap=30.0)),
}
