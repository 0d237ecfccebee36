"""Rows of a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.backends.cpu.arguments import embed as arguments
from pyllm.backends.cpu.kernels import kernel
from pyllm.backends.cpu.rules import emit
from pyllm.backends.cpu.values import HostRows
from pyllm.program.ops.embed import Embed

if TYPE_CHECKING:
    from pyllm.backends.cpu.lowering import Lowering
    from pyllm.backends.cpu.values import Node


EMBED_FORMATS = frozenset(
    [
        "F32", "F16", "BF16", "Q1_0", "Q2_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q8_1", "Q2_K", "Q3_K", "Q4_K",
        "Q5_K", "Q6_K", "Q8_K", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S",
        "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS",
    ]
)  # fmt: skip
"""The formats of `quant/kernels/decoders.py`, which only compiling processes import."""


@emit(Embed)
def embed(low: Lowering, node: Node, op: Embed) -> None:
    tensor, y = low.weights.table(op.table), low.new_f32(node)
    if tensor.format not in EMBED_FORMATS:
        low.host_rows.append(HostRows(op.table, op.of_positions, op.scale, y))
        low.table.touch(y.buffer, 0)
        return
    n = tensor.shape[-1]
    low.table.add(
        kernel("embed", "embed", format=tensor.format),
        arguments.Embed(
            table=low.weights.stored(op.table), y=y, columns=n, scale=op.scale, of_positions=int(op.of_positions)
        ),
        label=f"embed {tensor.format}",
    )
