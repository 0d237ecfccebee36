"""Linear attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.backends.cuda.recurrent import Scan, by_head
from pyllm.backends.cuda.rules import emit
from pyllm.program.ops.linear_attention import LinearAttention

if TYPE_CHECKING:
    from pyllm.backends.cuda.lowering import Lowering, Node


@emit(LinearAttention)
def linear_attention(low: Lowering, node: Node, op: LinearAttention) -> None:
    scan = Scan(
        "linear_attention.cu",
        "linear_attention",
        "linear attention",
        {"q": op.q, "k": op.k, "v": op.v, "decay": op.decay, "erase": op.erase, "insert": op.insert},
        {"decays": low.weights.constant(op.decays) if op.decays else None},
        {"scale": op.scale},
        {
            "N_KEY_HEADS": op.n_key_heads, "BY_ROW": int(op.decay is not None), "ERASES": int(op.erase is not None),
            "COMPLEMENT": int(op.complement), "BEFORE": int(op.before),
        },
    )  # fmt: skip
    by_head(low, node, op, scan, op.n_heads, op.key_dim, op.value_dim)
