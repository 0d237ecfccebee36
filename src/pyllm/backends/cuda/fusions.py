"""Fusions of the CUDA backend."""

from __future__ import annotations

from collections.abc import Callable

from pyllm.backends.cuda.launch import GROUP
from pyllm.backends.plan.groups import Capabilities
from pyllm.gguf.tensor import TensorInfo
from pyllm.program import Op
from pyllm.program.ops.attention import Attention
from pyllm.program.ops.experts import MixtureOfExperts
from pyllm.program.ops.linear import Linear
from pyllm.program.ops.norm import LayerNorm, RMSNorm


class Fusions(Capabilities):
    """Fusions by the formats of weights."""

    def __init__(self, tensor: Callable[[str], TensorInfo]) -> None:
        self._tensor = tensor

    def merge(self, a: Linear, b: Linear) -> bool:
        alike = self._tensor(a.weight).format == self._tensor(b.weight).format
        return alike and a.out.width % GROUP == 0 and b.out.width % GROUP == 0

    def add(self, product: Linear | MixtureOfExperts, other: Op | None, merged: bool) -> bool:
        return True

    def norm_of_sum(self, op: RMSNorm | LayerNorm) -> bool:
        return True

    def norm_of_rows(self, op: RMSNorm | LayerNorm) -> bool:
        return True

    def turn(self, op: Attention) -> bool:
        return True
