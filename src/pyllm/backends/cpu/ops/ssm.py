"""Scans of selective state spaces."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.backends.cpu.arguments import ssm as arguments
from pyllm.backends.cpu.kernels import kernel
from pyllm.backends.cpu.rules import emit
from pyllm.backends.cpu.table import View
from pyllm.program.ops.ssm import SSMScan1, SSMScan2

if TYPE_CHECKING:
    from pyllm.backends.cpu.lowering import Lowering
    from pyllm.backends.cpu.values import Node


@emit(SSMScan1)
def scan_1(low: Lowering, node: Node, op: SSMScan1) -> None:
    x, dt, b, c = map(low.f32, (op.x, op.dt, op.b, op.c))
    y, d = low.new_f32(node), low.weights.vector([(op.d, op.out.width)])[0]
    low.table.need_scratch(arguments.scratch_bytes(op.state_dim))
    low.table.add(
        kernel("ssm", "scan_1"),
        arguments.Scan1(
            x=x, dt=dt, b=b, c=c, y=y, a=View(*low.weights.columns(op.a)), d=d, states=low.states(op),
            columns=op.out.width, state_dim=op.state_dim, scratch=low.table.scratch,
        ),
        label="scan of Mamba 1",
    )  # fmt: skip


@emit(SSMScan2)
def scan_2(low: Lowering, node: Node, op: SSMScan2) -> None:
    x, dt, b, c = map(low.f32, (op.x, op.dt, op.b, op.c))
    y = low.new_f32(node)
    of_heads, _ = low.weights.vector([(weight, op.n_heads) for weight in (op.a, op.d, op.dt_bias)])
    low.table.need_scratch(arguments.scratch_bytes(op.state_dim))
    low.table.add(
        kernel("ssm", "scan_2"),
        arguments.Scan2(
            x=x, dt=dt, b=b, c=c, y=y, of_heads=of_heads, states=low.states(op), n_heads=op.n_heads,
            n_groups=op.n_groups, head_dim=op.head_dim, state_dim=op.state_dim, scratch=low.table.scratch,
        ),
        label="scan of Mamba 2",
    )  # fmt: skip
