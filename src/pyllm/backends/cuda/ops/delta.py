"""The gated delta rule."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.backends.cuda.recurrent import Scan, by_head
from pyllm.backends.cuda.rules import emit
from pyllm.program.ops.delta import DeltaRule

if TYPE_CHECKING:
    from pyllm.backends.cuda.lowering import Lowering, Node


@emit(DeltaRule)
def delta_rule(low: Lowering, node: Node, op: DeltaRule) -> None:
    scan = Scan(
        "delta.cu",
        "delta_rule",
        "delta rule",
        {"q": op.q, "k": op.k, "v": op.v, "decay": op.decay, "beta": op.beta},
        numbers={"scale": op.scale},
        defines={"N_KEY_HEADS": op.n_key_heads, "TILED": int(op.tiled), "BY_ROW": int(op.decays_by_row)},
    )
    by_head(low, node, op, scan, op.n_heads, op.key_dim, op.value_dim)
