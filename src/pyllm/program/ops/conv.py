"""Convolution over the last tokens of a sequence."""

from __future__ import annotations

from pyllm.errors import ModelError
from pyllm.program.op import Recurrent, Shapes
from pyllm.program.values import SlotSpec, Value, Weight
from pyllm.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortConv(Recurrent):
    """out[t, c] = sum over j of x[t - kernel + 1 + j, c] * weight[c, j] + bias[c]: each column for itself, causal.

    weight [width, kernel], bias [width]. Rows before the sequence are zeros. State: the last kernel - 1 rows of x,
    oldest first, [kernel - 1, width].
    """

    x: Value
    weight: Weight
    bias: Weight | None = None

    def kernel(self, shapes: Shapes) -> int:
        """Rows that a row of the output depends on."""
        shape = shapes.shape(self.weight)
        if len(shape) != 2 or shape[0] != self.x.width:
            shapes.refuse(self.weight, (self.x.width, shape[-1]))
        if shape[1] < 2:
            raise ModelError(f"tensor {self.weight} convolves over {shape[1]} token; at least 2 are needed")
        return shape[1]

    def slot(self, shapes: Shapes) -> SlotSpec:
        return SlotSpec((self.kernel(shapes) - 1, self.x.width))

    def infer(self, shapes: Shapes) -> int:
        self.kernel(shapes)
        shapes.require(self.bias, (self.x.width,))
        shapes.every_token("a convolution needs every token", self.x)
        return self.x.width
