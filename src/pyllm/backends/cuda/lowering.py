"""Lowering from a program to launches: fusion groups, in order, and the activation dtypes that readers want.

Fusion and order are planned before (`backends/plan`). Steps of up to FEW rows and larger ones take different kernels;
both are planned here, side by side.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pyllm.backends.cuda import candidates, elementwise, kv, linear, recurrent
from pyllm.backends.cuda.fusions import Fusions
from pyllm.backends.cuda.launch import (
    ALIGNMENT,
    FEW,
    Q8,
    ROWS,
    TOKENS,
    Count,
    Facts,
    Forms,
    Half,
    Launch,
    StepArrays,
    View,
    round_up,
)
from pyllm.backends.cuda.memory import Work
from pyllm.backends.cuda.rules import emit
from pyllm.backends.cuda.weights import Weights
from pyllm.backends.plan import forms
from pyllm.backends.plan.graph import Graph
from pyllm.backends.plan.groups import Group, fuse
from pyllm.backends.plan.memory import Buffer
from pyllm.backends.plan.schedule import Schedule
from pyllm.config import ExecutionOptions
from pyllm.gguf.tensor import TensorInfo
from pyllm.program import Op, Program, Stage, Value
from pyllm.records import dataclass


@dataclass(eq=False)
class Node:
    """A value: its number of rows, and its buffers by activation dtype."""

    value: Value
    count: Count
    f32: View | None = None
    q8: Q8 | None = None
    half: Half | None = None

    def forms(self, wanted: set[str]) -> Forms:
        """The wanted ones of its buffers."""
        f32, q8, half = (form in wanted for form in ("f32", "q8", "half"))
        return Forms(self.f32 if f32 else None, self.q8 if q8 else None, self.half if half else None)


@dataclass(frozen=True)
class StagePlan:
    """The launches of a stage, and the launch after which each sent value is complete."""

    stage: Stage
    first: int
    stop: int
    ends: dict[int, int]
    last: bool


class Lowering:
    """The lowered program. After construction everything is planned and nothing has an address."""

    def __init__(
        self, program: Program, tensors: Mapping[str, TensorInfo], options: ExecutionOptions, facts: Facts
    ) -> None:
        self.program, self.options, self.facts = program, options, facts
        self.weights, self.work = Weights(tensors), Work()
        self.parts = linear.Parts.of(facts.n_sm, facts.max_shared)
        self.arrays = StepArrays.of(options)
        self.caches = [Buffer(kv.cache_bytes(spec, options), outside=True) for spec in program.kv]
        self.slot_bytes = [4 * recurrent.stride(spec) for spec in program.slots]
        self.slots = [Buffer(n * options.n_slots, outside=True) for n in self.slot_bytes]
        self.received: dict[int, View] = {}
        self.sent: dict[int, View] = {}
        emit.check(program)
        self.graph = Graph(program)
        self.groups = fuse(self.graph, Fusions(self.weights.__getitem__))
        self._nodes = {v.id: Node(v, self._count(v)) for v in program.values()}
        schedule = Schedule(self.graph, self.groups)
        self.stages = [
            self._stage(stage, schedule.stage(i), stage == program.stages[-1]) for i, stage in enumerate(program.stages)
        ]
        self.n_candidates, self.chosen = 0, Buffer(0)
        if (logits := program.logits) and logits.id in self.sent and logits.id in self.graph.of_output_rows:
            self._candidates(self.sent[logits.id], logits.width)

    def _candidates(self, logits: View, n_vocab: int) -> None:
        """Launches after all others: the `n_candidates` most likely tokens of each row, in `chosen`."""
        if n := candidates.n_candidates(n_vocab):
            launches, self.chosen = candidates.launches(logits, n_vocab, self.arrays, self.options.max_rows)
            for launch in launches:
                self.work.add(launch, of_output_rows=True)
            self.work.hold_from_next(self.chosen)
            self.n_candidates = n

    def _stage(self, stage: Stage, order: Iterable[tuple[Op, list[Group]]], last: bool) -> StagePlan:
        first, ends = len(self.work.planned), {}
        for v in stage.receives:
            node = self.node(v)
            node.f32 = self.received[v.id] = self.room(node)
            self.work.touch_next(node.f32.buffer)
        for root, groups in order:
            for group in groups:
                emit.of(group.op)(self, self.node(group.out), group.op)
            if root.out in stage.sends:
                self.sent[root.out.id] = view = self.f32(root.out)
                self.work.hold_from_next(view.buffer)
                ends[root.out.id] = len(self.work.planned)
        return StagePlan(stage, first, len(self.work.planned), ends, last)

    def arrange(self) -> dict[str, int]:
        """Bytes by purpose: weights, KV cache with recurrent states, and uploads with work memory."""
        uploads = sum(round_up(b.n_bytes, 16) for b in self.arrays.all)
        return {
            "weights": self.weights.n_bytes,
            "kv": sum(b.n_bytes for b in (*self.slots, *self.caches)),
            "work": round_up(uploads, ALIGNMENT) + self.work.arrange(),
        }

    def place(self, weights: int, kv: int, work: int) -> None:
        """Assign addresses in these three blocks of memory, after `arrange`."""
        self.weights.place(weights)
        for state in (*self.slots, *self.caches):
            state.address = kv
            kv += state.n_bytes
        for buffer in self.arrays.all:
            buffer.address = work
            work += round_up(buffer.n_bytes, 16)
        self.work.place(round_up(work, ALIGNMENT))

    # --- values

    def node(self, v: Value) -> Node:
        return self._nodes[v.id]

    def is_by_row(self, v: Value) -> bool:
        return v.id in self.graph.of_output_rows

    def _count(self, v: Value) -> Count:
        return ROWS if v.id in self.graph.of_output_rows else TOKENS

    def most(self, node: Node) -> int:
        return node.count.most(self.options)

    def add(self, node: Node, launches: Launch | Iterable[Launch]) -> None:
        """Append launches that compute `node`."""
        for launch in [launches] if isinstance(launches, Launch) else launches:
            self.work.add(launch, node.count is ROWS)

    def room(self, node: Node) -> View:
        return View.room(self.most(node), node.value.width)

    def new_f32(self, node: Node) -> View:
        node.f32 = self.room(node)
        return node.f32

    def f32(self, v: Value) -> View:
        """The value as float32."""
        view = self.node(v).f32
        assert view is not None, "a value whose readers want float32 is computed in that form"
        return view

    def forms(self, v: Value, wanted: set[str]) -> Forms:
        """The value in these dtypes ("f32", "q8", "half"), converted now if needed."""
        node = self.node(v)
        missing = {form for form in wanted if getattr(node, form) is None}
        if missing:
            x, y = self.f32(v), self.new_forms(node, missing)
            self.add(node, elementwise.convert(self.arrays, node.count, x, y, node.value.width))
        return node.forms(wanted)

    def new_forms(self, node: Node, wanted: set[str]) -> Forms:
        """Buffers for a value in these dtypes."""
        n, width = self.most(node), node.value.width
        if "f32" in wanted:
            self.new_f32(node)
        if "q8" in wanted:
            node.q8 = Q8.room(min(n, FEW), width)
        if "half" in wanted:
            node.half = Half.room(n, width)
        return node.forms(wanted)

    def wants(self, node: Node) -> set[str]:
        """Activation dtypes that the readers of a value want; float32 if an op other than a product reads it."""
        return forms.wanted(self.graph, node.value, lambda v, names: self.x_forms(self.node(v), names))

    def x_forms(self, node: Node, names: Sequence[str]) -> set[str]:
        """Activation dtypes of the input of products with these weights, in steps of few rows and of many."""
        plans = [self.weights.plan([name]) for name in names]
        many = {plan.many_form for plan in plans} if self.most(node) > FEW else set()
        return {plan.few_form for plan in plans} | many
