"""Rotary positions; equal rotations share a step's table of angles."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.backends.cpu import attention
from pyllm.backends.cpu.attention import RopeTable
from pyllm.backends.cpu.rules import emit
from pyllm.backends.cpu.table import View
from pyllm.backends.plan.memory import Buffer
from pyllm.program.ops.rope import Rope

if TYPE_CHECKING:
    from pyllm.backends.cpu.lowering import Lowering
    from pyllm.backends.cpu.values import Node


def rope_table(low: Lowering, rope: RopeTable) -> View:
    """The step's cosines and sines, computed at their first use."""
    if rope not in low.ropes:
        view = View(Buffer(low.options.max_tokens * rope.row_bytes), rope.row_bytes)
        frequencies = low.weights.constant(rope.inv_freq)
        low.table.add(
            rope.kernel,
            rope.args(frequencies, view),
            label="rope table",
        )
        low.ropes[rope] = view
    return low.ropes[rope]


@emit(Rope)
def rope(low: Lowering, node: Node, op: Rope) -> None:
    table, x, y = RopeTable.of(op), low.f32(op.x), low.new_f32(node)
    angles = rope_table(low, table)
    low.table.add(
        attention.ROTATE,
        attention.rotate_args(
            x=x, y=y, n_heads=op.out.width // op.head_dim, head_dim=op.head_dim, rope=table, table=angles
        ),
        label="rope",
    )  # fmt: skip
