"""The gated delta rule: cases."""

from __future__ import annotations

import math

from pyllm.program import Value
from pyllm.program.ops.delta import DeltaRule
from pyllm.program.ops.elementwise import Scale
from pyllm.program.ops.gate import Activation
from pyllm.program.ops.linear import Linear
from pyllm.program.ops.norm import RMSNorm
from pyllm.testing.models import Builder, Record


def _delta(
    n_heads: int, n_key_heads: int, key_dim: int, value_dim: int, *, by_row: bool = False, tiled: bool = False
) -> Record:
    """Keys of length 1, decays below 0, betas from 0 to 1, as models have them."""

    def record(b: Builder, x: Value) -> Value:
        def linear(name: str, rows: int) -> Value:
            return b(Linear(x=x, weight=b.t(name, rows, x.width)))

        q, k = (
            b(
                Scale(
                    x=b(RMSNorm(x=linear(c, n_key_heads * key_dim), weight=None, eps=1e-6, group=key_dim)),
                    factor=factor,
                )
            )
            for c, factor in (("q", 1.0), ("k", key_dim**-0.5))
        )
        decay = b(Activation(x=linear("decay", n_heads * (key_dim if by_row else 1)), act="softplus"))
        beta = b(Activation(x=linear("beta", n_heads), act="sigmoid"))
        return b(DeltaRule(
            q=q, k=k, v=linear("v", n_heads * value_dim), decay=b(Scale(x=decay, factor=-0.2)), beta=beta,
            n_heads=n_heads, n_key_heads=n_key_heads, key_dim=key_dim, value_dim=value_dim,
            scale=1 / math.sqrt(key_dim), tiled=tiled,
        ))  # fmt: skip

    return record


CASES: dict[str, Record] = {
    "plain": _delta(2, 2, 32, 32),
    "heads_of_128": _delta(2, 1, 128, 128),
    "grouped": _delta(4, 2, 16, 32),
    "tiled": _delta(4, 2, 16, 32, tiled=True),
    "by_row": _delta(2, 2, 32, 48, by_row=True),
    "odd": _delta(3, 1, 20, 24),
}
