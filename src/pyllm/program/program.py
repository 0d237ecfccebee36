"""A program: the ops of a forward pass in order, their states, and the stages of a device's part."""

from __future__ import annotations

from pyllm.program.op import Op, inputs, weight_names
from pyllm.program.values import KVSpec, SlotSpec, StateSpec, Value
from pyllm.records import dataclass


@dataclass(frozen=True, slots=True)
class Stage:
    """A device's ops from `start` to before `stop`, which run without waiting for another device.

    Values that a stage receives or computes stay available to the later stages of the step. No value is received twice.
    """

    start: int
    stop: int
    receives: tuple[Value, ...] = ()
    """Values of other devices, given when the stage starts."""
    sends: tuple[Value, ...] = ()
    """Values that other devices or the caller may read when the stage is done."""


@dataclass(frozen=True, slots=True)
class Program:
    """A recorded pass. `hidden` [rows, n_embd] is the final normed state, `logits` [rows, n_vocab] the output; a model
    without an output head has none. `features` are what heads that guess further tokens read of a step: rows [rows,
    n_embd] of the output rows, and [tokens, n_embd] of every token.

    Where a model is split over devices, each has a program of its own: the ops that it computes, in stages (`cuts`),
    with states numbered anew. `hidden` and `logits` are the whole model's then; only some part computes them.
    """

    ops: tuple[Op, ...]
    n_layers: int
    n_embd: int
    n_vocab: int
    states: tuple[StateSpec, ...]
    """States of the ops; those of a kind are numbered from 0 in this order."""
    hidden: Value
    logits: Value | None
    encoder: Program | None = None
    """The pass over a sequence's source, before: it leaves keys and values in KV caches that ops of this program read
    (reach "source"). Its states are the same. None: sequences have no source."""
    cuts: tuple[Stage, ...] = ()
    """The stages of a part; empty for a whole model."""
    features: tuple[Value, Value] | None = None
    """None: not recorded."""
    given_rows: frozenset[int] = frozenset()
    """Ids of received values that have one row per output row, not one per token."""

    @property
    def results(self) -> tuple[Value, ...]:
        """What the program computes: the final state, logits where it has a head, and the features of heads."""
        found = (self.hidden, self.logits, *(self.features or ()))
        return tuple(dict.fromkeys(value for value in found if value is not None))

    @property
    def kv(self) -> tuple[KVSpec, ...]:
        """The KV caches, by number."""
        return tuple(spec for spec in self.states if isinstance(spec, KVSpec))

    @property
    def slots(self) -> tuple[SlotSpec, ...]:
        """The recurrent states, by number; none where a sequence is nothing but its tokens' keys and values."""
        return tuple(spec for spec in self.states if isinstance(spec, SlotSpec))

    @property
    def whole(self) -> bool:
        """Whether a step holds all of a sequence, or nothing: tokens see later ones, and no keys are kept."""
        return any(not spec.kept for spec in self.kv)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages in order; all ops are in one of them."""
        return self.cuts or (Stage(0, len(self.ops), sends=self.results),)

    def values(self) -> list[Value]:
        """All values, received ones first."""
        return [*(v for stage in self.stages for v in stage.receives), *(op.out for op in self.ops)]

    def of_output_rows(self) -> frozenset[int]:
        """Ids of all values that have one row per output row."""
        found = set(self.given_rows)
        for op in self.ops:
            if op.selects_rows or any(v.id in found for v in inputs(op)):
                found.add(op.out.id)
        return frozenset(found)

    def weights(self) -> list[str]:
        """Names of all tensors that the ops use, in order of first use."""
        return list(dict.fromkeys(name for op in self.ops for name in weight_names(op)))
