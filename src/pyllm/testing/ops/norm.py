"""Norms: cases."""

from __future__ import annotations

from pyllm.program.ops.elementwise import Scale
from pyllm.program.ops.norm import LayerNorm, RMSNorm
from pyllm.testing.models import Record

CASES: dict[str, Record] = {
    "rms": lambda b, x: b(RMSNorm(x=x, weight=b.t("a_norm.weight", x.width), eps=1e-5)),
    "rms_plain": lambda b, x: b(RMSNorm(x=x, weight=None, eps=1e-6)),
    "rms_heads": lambda b, x: b(RMSNorm(x=x, weight=b.t("a_norm.weight", 16), eps=1e-5, group=16)),
    "rms_columns": lambda b, x: b(RMSNorm(x=x, weight=b.t("a_norm.weight", x.width), eps=1e-5, group=16)),
    "rms_matrix": lambda b, x: b(RMSNorm(x=x, weight=b.t("a_norm.weight", x.width // 16, 16), eps=1e-5, group=16)),
    "rms_bias": lambda b, x: b(
        RMSNorm(x=x, weight=b.t("a_norm.weight", x.width), bias=b.t("a_norm.bias", x.width), eps=1e-5)
    ),
    "rms_columns_bias": lambda b, x: b(
        RMSNorm(x=b(Scale(x=x, factor=2.0)), weight=None, bias=b.t("a_norm.bias", x.width), eps=1e-5, group=16)
    ),
    "layer": lambda b, x: b(
        LayerNorm(x=x, weight=b.t("a_norm.weight", x.width), bias=b.t("a_norm.bias", x.width), eps=1e-5)
    ),
    "layer_plain": lambda b, x: b(LayerNorm(x=b(Scale(x=x, factor=30.0)), weight=None, eps=1e-6)),
    "layer_heads": lambda b, x: b(LayerNorm(x=x, weight=b.t("a_norm.weight", 16), eps=1e-5, group=16)),
    "layer_columns": lambda b, x: b(
        LayerNorm(x=x, weight=b.t("a_norm.weight", x.width), bias=b.t("a_norm.bias", 32), eps=1e-5, group=32)
    ),
}
