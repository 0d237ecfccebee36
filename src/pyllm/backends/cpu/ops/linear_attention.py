"""Linear attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.backends.cpu.arguments import linear_attention as arguments
from pyllm.backends.cpu.kernels import kernel
from pyllm.backends.cpu.kernels.heads_scratch import scratch_bytes
from pyllm.backends.cpu.rules import emit
from pyllm.program.ops.linear_attention import LinearAttention

if TYPE_CHECKING:
    from pyllm.backends.cpu.lowering import Lowering
    from pyllm.backends.cpu.values import Node


@emit(LinearAttention)
def linear_attention(low: Lowering, node: Node, op: LinearAttention) -> None:
    q, k, v = map(low.f32, (op.q, op.k, op.v))
    decay, erase, insert = (None if value is None else low.f32(value) for value in (op.decay, op.erase, op.insert))
    y, decays = low.new_f32(node), low.weights.constant(op.decays) if op.decays else None
    low.table.need_scratch(scratch_bytes(op.key_dim, arguments.N_OF_ROWS))
    options = {"erases": op.erase is not None, "before": op.before, "complement": op.complement}
    low.table.add(
        kernel(
            "linear_attention", "linear_attention", by_row=int(op.decay is not None),
            **{name: int(value) for name, value in options.items()},
        ),
        arguments.LinearAttention(
            q=q, k=k, v=v, decay=decay, decays=decays, erase=erase, insert=insert, y=y, states=low.states(op),
            n_heads=op.n_heads, n_key_heads=op.n_key_heads, key_dim=op.key_dim, value_dim=op.value_dim, scale=op.scale,
            scratch=low.table.scratch,
        ),
        label="linear attention",
    )  # fmt: skip
