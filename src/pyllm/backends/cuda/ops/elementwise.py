"""Arithmetic on single numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.backends.cuda import elementwise as launches
from pyllm.backends.cuda.launch import View
from pyllm.backends.cuda.rules import emit
from pyllm.program import Value
from pyllm.program.ops.elementwise import Add, AddWeight, Clamp, MulWeight, Scale, SoftCap

if TYPE_CHECKING:
    from pyllm.backends.cuda.lowering import Lowering, Node


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
    kind = "mul weight" if isinstance(op, MulWeight) else "add weight"
    y, x, n = low.new_forms(node, low.wants(node)), low.f32(op.x), low.weights[op.weight].n_elements
    weight = low.weights.vector([(op.weight, n)])
    low.add(node, launches.with_weight(kind, low.arrays, node.count, x, weight, y, op.out.width, op.out.width // n))


def elementwise(
    low: Lowering,
    node: Node,
    kind: str,
    a: Value,
    b: Value | None = None,
    *,
    factor: float = 0.0,
    selects_rows: bool = False,
) -> None:
    x = low.f32(a)
    z = low.f32(b) if b is not None else None
    apply(low, kind, x, z, node, factor, selects_rows)


def apply(low: Lowering, kind: str, x: View, z: View | None, node: Node, factor: float, selects_rows: bool) -> None:
    y, width = low.new_f32(node), node.value.width
    low.add(
        node,
        launches.elementwise(
            kind, low.arrays, node.count, x=x, z=z, y=y, factor=factor, width=width, selects_rows=selects_rows
        ),
    )
