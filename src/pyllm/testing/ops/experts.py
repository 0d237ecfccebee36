"""Mixtures of experts: cases."""

from __future__ import annotations

from typing import Any

from pyllm.program import Value
from pyllm.program.ops.experts import MixtureOfExperts
from pyllm.program.ops.linear import Linear
from pyllm.testing.models import Builder, Record
from pyllm.testing.ops import FormatCase


def _experts(
    n: int = 4,
    n_ff: int = 96,
    *,
    bias: bool = False,
    scale: bool = False,
    choice_bias: bool = False,
    gated: bool = True,
    n_used: int = 2,
    **options: Any,
) -> Record:
    matrices = n // options.get("sharing", 1)

    def record(b: Builder, x: Value) -> Value:
        sizes = {"gate": (n_ff, x.width), "up": (n_ff, x.width), "down": (x.width, n_ff)}
        if not gated:
            del sizes["gate"]
        names: dict[str, Any] = {"gate": None} | {part: b.t(part, matrices, *size) for part, size in sizes.items()}
        if bias:
            names |= {f"{part}_bias": b.t(f"{part}.bias", matrices, size[0]) for part, size in sizes.items()}
        if scale:
            names |= {f"{part}_scale": b.t(f"{part}.scale", matrices) for part in sizes}
        if choice_bias:
            names["choice_bias"] = b.t("choice", n)
        router = b(Linear(x=x, weight=b.t("router", n, x.width)))
        return b(MixtureOfExperts(x=x, router=router, n_used=n_used, n_ff=n_ff, **names, **options))

    return record


CASES: dict[str, Record] = {
    "plain": _experts(),
    "normalized": _experts(normalize=True, weight_scale=2.5),
    "all": _experts(n_used=4),
    "sigmoid": _experts(gating="sigmoid", normalize=True, choice_bias=True),
    "oai": _experts(gating="softmax_chosen", act="swiglu_oai", bias=True),
    "scaled": _experts(scale=True),
    "gelu": _experts(act="gelu"),
    "clamped": _experts(act="swiglu_clamp", limit=0.5),
    "weighed_inputs": _experts(gating="sigmoid", weighs_input=True),
    "weighed_inputs_scaled": _experts(gating="sigmoid", weighs_input=True, scale=True, n_ff=90),
    "sharing": _experts(sharing=2, normalize=True, n_used=3),
    "groups": _experts(12, n_used=3, n_groups=4, n_groups_used=2, gating="sigmoid", choice_bias=True),
    "ungated": _experts(gated=False, act="relu2", bias=True),
    "ungated_scaled": _experts(gated=False, act="silu", scale=True, gating="sigmoid", normalize=True),
}

# The router stays F32: all backends must choose alike.
FORMATS = {
    "all_parts": FormatCase(
        _experts(3, 256), width=256, in_f32=("table", "router"), n_products=4, usual=("F16", "Q5_K", "MXFP4")
    )
}
