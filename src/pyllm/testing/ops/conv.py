"""Convolution over the last tokens: cases."""

from __future__ import annotations

from pyllm.program.ops.conv import ShortConv
from pyllm.testing.models import Record

CASES: dict[str, Record] = {
    "kernel_of_4": lambda b, x: b(ShortConv(x=x, weight=b.t("conv", x.width, 4))),
    "kernel_of_3": lambda b, x: b(ShortConv(x=x, weight=b.t("conv", x.width, 3), bias=b.t("conv.bias", x.width))),
    "kernel_of_2": lambda b, x: b(ShortConv(x=x, weight=b.t("conv", x.width, 2))),
    "twice": lambda b, x: b(ShortConv(x=b(ShortConv(x=x, weight=b.t("a", x.width, 4))), weight=b.t("b", x.width, 7))),
}
