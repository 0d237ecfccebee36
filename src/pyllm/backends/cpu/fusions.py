"""Fusions of the CPU backend."""

from __future__ import annotations

from collections.abc import Callable

from pyllm.backends.cpu import linear
from pyllm.backends.plan.graph import Graph
from pyllm.backends.plan.groups import Capabilities
from pyllm.gguf.tensor import TensorInfo
from pyllm.program import Op, Value
from pyllm.program.ops.attention import Attention
from pyllm.program.ops.experts import MixtureOfExperts
from pyllm.program.ops.gate import GatedActivation
from pyllm.program.ops.linear import Linear
from pyllm.program.ops.norm import LayerNorm, RMSNorm
from pyllm.program.ops.select import Slice


class Fusions(Capabilities):
    """Fusions by the formats of weights. `only_wide`: whether a value is wanted by the prefill path alone, and its
    input has bfloat16 records too."""

    turns_in_place = True

    def __init__(
        self, graph: Graph, tensor: Callable[[str], TensorInfo], only_wide: Callable[[Value, Value], bool]
    ) -> None:
        self._graph, self._tensor, self._only_wide = graph, tensor, only_wide

    def merge(self, a: Linear, b: Linear) -> bool:
        alike = self._tensor(a.weight).format == self._tensor(b.weight).format
        return alike and a.out.width % 16 == 0 and b.out.width % 16 == 0

    def add(self, product: Linear | MixtureOfExperts, other: Op | None, merged: bool) -> bool:
        """A residual must have the sum's layout; experts accept any."""
        return isinstance(product, MixtureOfExperts) or not (merged or (other and is_view(self._graph, other)))

    def gate(self, gate: Linear, up: Linear, op: GatedActivation) -> bool:
        """Where the prefill path has a kernel for it."""
        if gate.out.width != up.out.width or op.limit or not self._only_wide(op.out, gate.x):
            return False
        tensor = self._tensor(gate.weight)
        plan = linear.plan(tensor.format, gate.out.width + up.out.width, tensor.shape[-1])
        return plan.gated_kernel(op.act) is not None

    def norm_of_sum(self, op: RMSNorm | LayerNorm) -> bool:
        return True

    def norm_of_rows(self, op: RMSNorm | LayerNorm) -> bool:
        return True

    def turn(self, op: Attention) -> bool:
        return True


def is_view(graph: Graph, op: Op) -> bool:
    """Whether an op's value is a view of another value's rows."""
    return isinstance(op, Slice) and op.start % 16 == 0 and op.out.id not in graph.sent
