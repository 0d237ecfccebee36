"""Gated activations; on the prefill path they are fused into the gate and up projection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.backends.cpu.arguments import elementwise as arguments
from pyllm.backends.cpu.kernels import kernel
from pyllm.backends.cpu.ops.linear import Gate, products
from pyllm.backends.cpu.rules import emit
from pyllm.backends.cpu.table import View, round_up
from pyllm.backends.plan.groups import Gated
from pyllm.jit.compiler import Kernel
from pyllm.program.ops.gate import Activation, GatedActivation

if TYPE_CHECKING:
    from pyllm.backends.cpu.lowering import Lowering
    from pyllm.backends.cpu.values import Node


@emit(GatedActivation)
def gated_activation(low: Lowering, node: Node, op: GatedActivation) -> None:
    y, group, rows = low.new_forms(node), low.groups.of(op.out), low.range(node)
    fused = isinstance(group, Gated)
    if isinstance(group, Gated):
        assert node.q8, "readers of a fused gate want records alone (`Fusions.gate`)"
        products(low, group.product, Gate(op.act, node.q8))
        rows = low.narrow(node)
    gate, up = low.f32(op.gate), low.f32(op.up)
    add_gate(
        low, op.act, gate, up, y, node.q8, op.out.width, rows, low.wide_from(node), op.columns_per_gate,
        narrow=fused, limit=op.limit,
    )  # fmt: skip


def add_gate(
    low: Lowering, act: str, gate: View, up: View, y: View | None, q8: View | None, width: int, rows: View,
    wide_from: View, spread: int = 1, narrow: bool = False, limit: float = 0.0,
) -> None:  # fmt: skip
    """Add a gated activation of the rows in `rows` (first, count) to the table; `narrow`: not for rows of the prefill
    path.

    spread: columns that one number of the gate applies to.
    """
    gated = kernel("elementwise", "gated", act=act)
    add_rows(low, gated, act, gate, up, y, q8, width, rows, wide_from, spread, narrow, limit)


def add_rows(
    low: Lowering, compiled: Kernel, label: str, gate: View, up: View, y: View | None, q8: View | None, width: int,
    rows: View, wide_from: View, spread: int = 1, narrow: bool = False, limit: float = 0.0,
) -> None:  # fmt: skip
    """Add a kernel that computes rows of two inputs, as float32, quantized activations, or both."""
    low.table.need_scratch(8 * round_up(width, 32))
    low.table.add(
        compiled,
        arguments.Gated(
            gate=gate, up=up, y=y, records=q8, columns=width, rows=rows, scratch=low.table.scratch,
            wide_from=wide_from, spread=spread, limit=limit,
        ),
        label=label,
        narrow=narrow,
    )  # fmt: skip


@emit(Activation)
def activation(low: Lowering, node: Node, op: Activation) -> None:
    if op.act == "xielu":
        _xielu(low, node, op)
        return
    x, y = low.f32(op.x), low.new_forms(node)
    compiled = kernel("elementwise", "activation", act=op.act)
    add_rows(low, compiled, op.act, x, x, y, node.q8, op.out.width, low.range(node), low.wide_from(node))


def _xielu(low: Lowering, node: Node, op: Activation) -> None:
    x, y = low.f32(op.x), low.new_f32(node)
    alpha_n, alpha_p, beta, eps = op.parameters
    low.table.add(
        kernel("elementwise", "xielu"),
        arguments.XIELU(
            x=x, y=y, columns=op.out.width, rows=low.range(node), alpha_n=alpha_n, alpha_p=alpha_p, beta=beta, eps=eps
        ),
        label="xielu",
    )
