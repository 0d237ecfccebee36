"""A program as a graph: the producer and the readers of each value, its stage, and the values that cross stages."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from pyllm.program import Op, Program, Value, inputs


class Graph:
    """Values and ops of one program, or of a device's part of one."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.of_output_rows = program.of_output_rows()
        """Ids of values that have one row per output row, not one per token."""
        self.sent = frozenset(v.id for stage in program.stages for v in stage.sends)
        """Ids of values that are sent to other devices or the caller."""
        self._producers = {op.out.id: op for op in program.ops}
        self._readers: dict[int, list[Op]] = defaultdict(list)
        for op in program.ops:
            for v in inputs(op):
                self._readers[v.id].append(op)
        self._stages = {
            op.out.id: i for i, stage in enumerate(program.stages) for op in program.ops[stage.start : stage.stop]
        }

    def producer(self, v: Value) -> Op | None:
        """The op that computes a value; None for a received value."""
        return self._producers.get(v.id)

    def readers(self, v: Value) -> Sequence[Op]:
        """Ops that read a value, in order; one that reads it twice is listed twice."""
        return self._readers.get(v.id, ())

    def only_reader(self, v: Value) -> Op | None:
        """The only op that reads a value, and reads it once; None where there is none, or where the value is sent."""
        readers = self.readers(v)
        return readers[0] if len(readers) == 1 and v.id not in self.sent else None

    def stage(self, op: Op) -> int:
        """Number of the stage that an op belongs to."""
        return self._stages[op.out.id]

    def roots(self, stage: int) -> list[Op]:
        """Ops that a stage must compute: those that keep a state, and those whose value is sent.

        Values that only later stages read may be computed there.
        """
        cut = self.program.stages[stage]
        sent = {v.id for v in cut.sends}
        return [op for op in self.program.ops[cut.start : cut.stop] if op.keeps_state or op.out.id in sent]


def last_uses(ops: Sequence[Op]) -> list[set[int]]:
    """For each op the ids of values whose last reader it is, and of its own value where nothing reads it."""
    seen: set[int] = set()
    out: list[set[int]] = []
    for op in reversed(ops):
        ids = {v.id for v in inputs(op)} | {op.out.id}
        out.append(ids - seen)
        seen |= ids
    return out[::-1]
