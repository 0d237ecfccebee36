"""Linear attention: cases."""

from __future__ import annotations

from typing import Any

from pyllm.program import Value
from pyllm.program.ops.elementwise import Scale
from pyllm.program.ops.gate import Activation, GatedActivation
from pyllm.program.ops.linear import Linear
from pyllm.program.ops.linear_attention import LinearAttention
from pyllm.program.ops.norm import RMSNorm
from pyllm.testing.models import Builder, Record


def _attention(
    n_heads: int, n_key_heads: int, key_dim: int, value_dim: int, *, erases: bool = False, **options: Any
) -> Record:
    """Decays below 0, by row unless `decays` are given; directions to erase of length 1, as models have them."""

    def record(b: Builder, x: Value) -> Value:
        def linear(name: str, rows: int) -> Value:
            return b(Linear(x=x, weight=b.t(name, rows, x.width)))

        rows = n_heads * key_dim
        values: dict[str, Any] = {}
        if "decays" not in options:
            decay = b(Activation(x=linear("decay", rows), act="softplus"))
            values["decay"] = b(Scale(x=decay, factor=-0.2))
        if erases:
            unit = b(RMSNorm(x=linear("erase", rows), weight=None, eps=1e-6, group=key_dim))
            unit = b(Scale(x=unit, factor=key_dim**-0.5))
            values["erase"] = b(Scale(x=unit, factor=-1.0))
            values["insert"] = b(GatedActivation(gate=linear("insert", rows), up=unit, act="sigmoid"))
        return b(LinearAttention(
            q=linear("q", rows), k=linear("k", n_key_heads * key_dim), v=linear("v", n_key_heads * value_dim), **values,
            n_heads=n_heads, n_key_heads=n_key_heads, key_dim=key_dim, value_dim=value_dim, **options,
        ))  # fmt: skip

    return record


CASES: dict[str, Record] = {
    "by_row": _attention(2, 2, 32, 32, scale=0.05),
    "by_head": _attention(3, 3, 16, 16, decays=(-0.9, -0.1, -0.01), scale=0.05),
    "grouped": _attention(4, 2, 32, 32, complement=True, scale=0.1),
    "before": _attention(2, 2, 64, 64, before=True, scale=0.05),
    "erasing": _attention(2, 2, 64, 64, erases=True, scale=0.05),
    "heads_of_128": _attention(2, 2, 128, 128, decays=(-0.5, -0.02), scale=0.02),
    "odd": _attention(3, 1, 20, 24, erases=True, before=True, complement=True, scale=0.1),
}
