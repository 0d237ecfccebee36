"""Arithmetic on single numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.backends.cpu.arguments.elementwise import Elementwise
from pyllm.backends.cpu.kernels import kernel
from pyllm.backends.cpu.ops.gate import add_rows
from pyllm.backends.cpu.rules import emit
from pyllm.backends.cpu.table import View
from pyllm.program import Value
from pyllm.program.ops.elementwise import Add, AddWeight, Clamp, MulWeight, Scale, SoftCap

if TYPE_CHECKING:
    from pyllm.backends.cpu.lowering import Lowering
    from pyllm.backends.cpu.values import Node


@emit(Add)
def add(low: Lowering, node: Node, op: Add) -> None:
    elementwise(low, node, "add", op.a, op.b)


@emit(Scale)
def scale(low: Lowering, node: Node, op: Scale) -> None:
    elementwise(low, node, "scale", op.x, factor=op.factor)


@emit(SoftCap)
def soft_cap(low: Lowering, node: Node, op: SoftCap) -> None:
    elementwise(low, node, "softcap", op.x, factor=op.cap)


@emit(Clamp)
def clamp(low: Lowering, node: Node, op: Clamp) -> None:
    elementwise(low, node, "clamp", op.x, factor=op.most)


@emit(MulWeight)
@emit(AddWeight)
def with_weight(low: Lowering, node: Node, op: MulWeight | AddWeight) -> None:
    kind = "mul_weight" if isinstance(op, MulWeight) else "add_weight"
    n = low.weights[op.weight].n_elements
    weight = View(low.weights.vector([(op.weight, n)])[0], 0)
    x, y = low.f32(op.x), low.new_forms(node)
    add_rows(
        low, kernel("elementwise", kind), kind.replace("_", " "), weight, x, y, node.q8, op.out.width, low.range(node),
        low.wide_from(node), op.out.width // n,
    )  # fmt: skip


def elementwise(
    low: Lowering,
    node: Node,
    kind: str,
    a: Value,
    b: Value | None = None,
    *,
    factor: float = 0.0,
    selects_rows: int = 0,
) -> None:
    x = low.f32(a)
    z = low.f32(b) if b is not None else x
    apply(low, kind, x, z, low.new_f32(node), node, factor, selects_rows)


def apply(low: Lowering, kind: str, x: View, z: View, y: View, node: Node, factor: float, selects_rows: int) -> None:
    width = node.value.width
    low.table.add(
        kernel("elementwise", "elementwise", kind=kind),
        Elementwise(x=x, b=z, y=y, factor=factor, columns=width, rows=low.range(node), selects_rows=selects_rows),
        label=kind,
    )
