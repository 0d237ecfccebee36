"""The recorder: an architecture writes its pass through one, op by op, and each op is checked."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from pyllm.errors import ModelError
from pyllm.program.op import Op, Shapes, inputs
from pyllm.program.program import Program
from pyllm.program.values import Value


@dataclass
class Recorder(Shapes):
    """Records the ops that it is called with: `y = rec(Linear(x=x, weight=Weight("output.weight")))`.

    Each op checks its inputs and its tensors (`Op.infer`) and is given the value that it computes. Set `layer` before
    a block is recorded. Whatever does not fit raises ModelError and names the tensor.
    """

    layer: int = -1
    ops: list[Op] = field(default_factory=list)

    def __call__(self, op: Op) -> Value:
        """Record an op; returns its value."""
        op = op.settle(self)
        width = op.infer(self)
        out = Value(len(self.ops), width)
        if op.selects_rows or any(v.id in self.selected for v in inputs(op)):
            self.selected.add(out.id)
        self.ops.append(replace(op, out=out, layer=self.layer))
        return out

    def finish(self, hidden: Value, logits: Value, *, n_layers: int) -> Program:
        """The program that computes `hidden` and `logits`, both of selected rows."""
        if not {hidden.id, logits.id} <= self.selected:
            raise ModelError("a program's results must be of selected rows")
        return Program(
            ops=tuple(self.ops),
            n_layers=n_layers,
            n_embd=hidden.width,
            n_vocab=logits.width,
            states=tuple(self.states),
            hidden=hidden,
            logits=logits,
        )


def as_inv_freq(values: NDArray[np.floating] | list[float]) -> tuple[float, ...]:
    """Rotary frequencies as a hashable tuple of float32-representable numbers."""
    return tuple(float(v) for v in np.asarray(values, np.float32))
