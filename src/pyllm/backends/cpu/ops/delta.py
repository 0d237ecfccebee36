"""The gated delta rule."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.backends.cpu.arguments import delta as arguments
from pyllm.backends.cpu.kernels import kernel
from pyllm.backends.cpu.kernels.heads_scratch import scratch_bytes
from pyllm.backends.cpu.rules import emit
from pyllm.program.ops.delta import DeltaRule

if TYPE_CHECKING:
    from pyllm.backends.cpu.lowering import Lowering
    from pyllm.backends.cpu.values import Node


@emit(DeltaRule)
def delta_rule(low: Lowering, node: Node, op: DeltaRule) -> None:
    q, k, v, decay, beta = map(low.f32, (op.q, op.k, op.v, op.decay, op.beta))
    y = low.new_f32(node)
    low.table.need_scratch(scratch_bytes(op.key_dim, arguments.N_OF_ROWS))
    low.table.add(
        kernel("delta", "delta_rule", by_row=int(op.decays_by_row)),
        arguments.DeltaRule(
            q=q, k=k, v=v, decay=decay, beta=beta, y=y, states=low.states(op), n_heads=op.n_heads,
            n_key_heads=op.n_key_heads, tiled=int(op.tiled), key_dim=op.key_dim, value_dim=op.value_dim,
            scale=op.scale, scratch=low.table.scratch,
        ),
        label="delta rule",
    )  # fmt: skip
