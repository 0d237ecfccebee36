"""The recorder: takes an architecture's forward pass op by op, and checks each op."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.errors import ModelError
from pyllm.program.op import UNRECORDED, Op, Shapes, inputs, inputs_by_field
from pyllm.program.ops.select import SelectRows
from pyllm.program.program import Program, Stage
from pyllm.program.values import Value


@dataclass
class Recorder(Shapes):
    """Records the ops that it is called with: `y = rec(Linear(x=x, weight=Weight("output.weight")))`.

    Each op checks its inputs and tensors (`Op.infer`) and gets its output value. Set `layer` before a block is
    recorded. Raises ModelError, naming the tensor, where shapes do not fit.
    """

    layer: int = -1
    ops: list[Op] = field(default_factory=list)
    received: list[Value] = field(default_factory=list)
    """Values that are given to each step."""
    _last_whole: int = -1
    """The last op that needs every token."""

    def __call__(self, op: Op) -> Value:
        """Record an op and return its value. Raises ModelError."""
        op = op.settle(self)
        width = op.infer(self)
        if not inputs(op):
            self._last_whole = len(self.ops)  # it reads tokens
        out = self._append(op, width, self.layer)
        if op.selects_rows or any(v.id in self.selected for v in inputs(op)):
            self.selected.add(out.id)
        return out

    def receive(self, width: int) -> Value:
        """A value [tokens, width] that is given to each step, as a stage's `receives`."""
        value = Value(UNRECORDED.id - 1 - len(self.received), width)
        self.received.append(value)
        return value

    def every_token(self, need: str, *values: Value) -> None:
        super().every_token(need, *values)
        self._last_whole = len(self.ops)

    def select_rows(self, *results: Value, whole: Value | None = None) -> tuple[Value, ...]:
        """Select the output rows right after the last op that needs every token; returns `results` of the output rows.

        Later ops then read only the output rows of the values computed so far. `whole` is added to the results as a
        value of every token; ops after the cut that it needs are computed again for it, after all others.
        """
        cut = self._last_whole + 1
        later, self.ops = self.ops[cut:], self.ops[:cut]
        wanted = {v.id: v for v in (*results, *(v for op in later for v in inputs(op))) if v.id < cut}
        new: dict[int, Value] = {}
        for _, v in sorted(wanted.items()):
            new[v.id] = self._append(SelectRows(x=v), v.width, self.ops[cut - 1].layer)
        self._append_again(later, new)
        self.selected = {v.id for v in new.values()}
        found = tuple(new[v.id] for v in results)
        if whole is None:
            return found
        same = {v.id: v for v in wanted.values()} | {whole.id: whole}
        self._append_again([op for op in later if op.out.id <= whole.id], same)
        return *found, same[whole.id]

    def _append_again(self, ops: list[Op], new: dict[int, Value]) -> None:
        """Record ops anew, which read the new values; adds theirs to `new`."""
        for op in ops:
            read: dict[str, Any] = {name: new[v.id] for name, v in inputs_by_field(op).items()}
            new[op.out.id] = self._append(replace(op, **read), op.out.width, op.layer)

    def _append(self, op: Op, width: int, layer: int) -> Value:
        out = Value(len(self.ops), width)
        self.ops.append(replace(op, out=out, layer=layer))
        return out

    def finish(
        self,
        hidden: Value,
        logits: Value | None,
        *,
        n_layers: int,
        n_vocab: int | None = None,
        features: tuple[Value, Value] | None = None,
    ) -> Program:
        """The program that computes `hidden` and `logits`, both of selected rows, and `features`.

        Without logits, `n_vocab` tells how many tokens the model knows.
        """
        n_vocab = n_vocab if logits is None else logits.width
        if n_vocab is None:
            raise ModelError("a program without logits must be told how many tokens it knows")
        program = Program(
            ops=tuple(self.ops),
            n_layers=n_layers,
            n_embd=hidden.width,
            n_vocab=n_vocab,
            states=tuple(self.states),
            hidden=hidden,
            logits=logits,
            features=features,
        )
        if self.received:
            stage = Stage(0, len(self.ops), tuple(self.received), program.results)
            program = replace(program, cuts=(stage,))
        whole = set() if features is None else {features[1].id}
        if not {v.id for v in program.results} - whole <= self.selected:
            raise ModelError("a program's results must be of the output rows")
        return program


def as_inv_freq(values: NDArray[np.floating] | list[float]) -> tuple[float, ...]:
    """Rotary frequencies as a hashable tuple of float32-representable numbers."""
    return tuple(float(v) for v in np.asarray(values, np.float32))
