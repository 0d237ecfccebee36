"""Scans of selective state spaces."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.backends.cuda.recurrent import Scan, by_head, by_sequence
from pyllm.backends.cuda.rules import emit
from pyllm.program.ops.ssm import SSMScan1, SSMScan2

if TYPE_CHECKING:
    from pyllm.backends.cuda.lowering import Lowering, Node

_THREADS = 64
"""Threads of a block of kernels/ssm_channels.cu."""


@emit(SSMScan1)
def scan_1(low: Lowering, node: Node, op: SSMScan1) -> None:
    width, n = op.x.width, op.state_dim
    scan = Scan(
        "ssm_channels.cu",
        "ssm_channels",
        "scan of channels",
        {"x": op.x, "dt": op.dt, "b": op.b, "c": op.c},
        {"rates": low.weights.vector([(op.a, width * n)]), "d": low.weights.vector([(op.d, width)])},
        defines={"STATE_DIM": n, "WIDTH": width},
    )
    by_sequence(low, node, op, scan, n, _THREADS)


@emit(SSMScan2)
def scan_2(low: Lowering, node: Node, op: SSMScan2) -> None:
    n = op.n_heads
    weights = {"rates": op.a, "d": op.d, "bias": op.dt_bias}
    scan = Scan(
        "ssm_heads.cu",
        "ssm_heads",
        "scan of heads",
        {"x": op.x, "dt": op.dt, "b": op.b, "c": op.c},
        {name: low.weights.vector([(weight, n)]) if weight else None for name, weight in weights.items()},
        defines={"N_GROUPS": op.n_groups},
    )
    by_head(low, node, op, scan, n, op.state_dim, op.head_dim)
