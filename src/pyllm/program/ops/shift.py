"""The tokens before."""

from __future__ import annotations

from pyllm.program.op import Recurrent, Shapes
from pyllm.program.values import SlotSpec, Value
from pyllm.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenShift(Recurrent):
    """out[t] = x[t - 1] - x[t]: what a blend of a token and the one before it, x + amount * out, takes its amount of.

    The row before the sequence is zeros. RWKV (arXiv:2305.13048). State: the last row of x, [width].
    """

    x: Value

    def slot(self, shapes: Shapes) -> SlotSpec:
        return SlotSpec((self.x.width,))

    def infer(self, shapes: Shapes) -> int:
        shapes.every_token("a shift of tokens needs every token", self.x)
        return self.x.width
