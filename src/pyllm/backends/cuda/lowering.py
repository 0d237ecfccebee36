"""From a program to launches: which values are computed when, by which kernel, in which forms, and what is fused.

Values are computed when something asks for them, so that whoever asks decides what they are fused with: a norm takes
the selection of rows before it along, a product the sum or the gated activation after it, attention the norms and
rotations of queries and keys; products of one input and format are one product. Steps of up to FEW rows and of more
take different kernels; both are planned here, side by side.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pyllm.backends.cuda import candidates, elementwise, linear
from pyllm.backends.cuda.launch import (
    ALIGNMENT,
    FEW,
    Q8,
    ROWS,
    TOKENS,
    Buffer,
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
from pyllm.backends.cuda.ops.experts import expert_forms
from pyllm.backends.cuda.rules import emit
from pyllm.backends.cuda.weights import Weights
from pyllm.config import ExecutionOptions
from pyllm.gguf.tensor import TensorInfo
from pyllm.program import Op, Program, Stage, Value, inputs
from pyllm.program.ops.attention import Attention
from pyllm.program.ops.experts import MixtureOfExperts
from pyllm.program.ops.linear import Linear


@dataclass(eq=False)
class Node:
    """A value: the op that computes it (None: another device does), who reads it, where it is in which form."""

    value: Value
    op: Op | None
    count: Count
    readers: list[Op] = field(default_factory=list)
    f32: View | None = None
    q8: Q8 | None = None
    half: Half | None = None

    @property
    def only_reader(self) -> Op | None:
        return self.readers[0] if len(self.readers) == 1 else None

    def forms(self, wanted: set[str]) -> Forms:
        """Those of its forms that are wanted, of what there are."""
        f32, q8, half = (form in wanted for form in ("f32", "q8", "half"))
        return Forms(self.f32 if f32 else None, self.q8 if q8 else None, self.half if half else None)

    @property
    def computed(self) -> bool:
        return self.f32 is not None or self.q8 is not None or self.half is not None


@dataclass(frozen=True)
class StagePlan:
    """Which launches a stage is, and after which of them each value that it sends is there."""

    stage: Stage
    first: int
    stop: int
    ends: dict[int, int]
    last: bool


class Lowering:
    """What a program becomes. After construction everything is planned and nothing has an address."""

    def __init__(
        self, program: Program, tensors: Mapping[str, TensorInfo], options: ExecutionOptions, facts: Facts
    ) -> None:
        self.program, self.options, self.facts = program, options, facts
        self.weights, self.work = Weights(tensors), Work()
        self.parts = linear.Parts.of(facts.n_sm, facts.max_shared)
        self.arrays = StepArrays.of(options)
        self.caches = [Buffer(0, outside=True) for _ in program.kv]
        self.received: dict[int, View] = {}
        self.sent: dict[int, View] = {}
        self._sends = {v.id for stage in program.stages for v in stage.sends}
        self._by_row = program.by_row()
        self._nodes: dict[int, Node] = {}
        for stage in program.stages:
            for v in stage.receives:
                self._nodes[v.id] = Node(v, None, self._count(v))
        for op in program.ops:
            for v in inputs(op):
                self._nodes[v.id].readers.append(op)
            self._nodes[op.out.id] = Node(op.out, op, self._count(op.out))
        self.stages = [self._stage(s, s == program.stages[-1]) for s in program.stages]
        self.n_candidates, self.chosen = 0, Buffer(0)
        if program.logits.id in self.sent and program.logits.id in self._by_row:
            self._candidates(self.sent[program.logits.id])

    def _candidates(self, logits: View) -> None:
        """After everything else: the likeliest tokens, `n_candidates` of each row, in `chosen`."""
        n_vocab = self.program.logits.width
        if n := candidates.n_candidates(n_vocab):
            launches, self.chosen = candidates.launches(logits, n_vocab, self.arrays, self.options.max_rows)
            for launch in launches:
                self.work.add(launch, by_row=True)
            self.work.hold(self.chosen)
            self.n_candidates = n

    def _stage(self, stage: Stage, last: bool) -> StagePlan:
        first = len(self.work.planned)
        for v in stage.receives:
            node = self.node(v)
            node.f32 = self.received[v.id] = self.room(node)
            self.work.touch(node.f32.buffer)
        for op in self.program.ops[stage.start : stage.stop]:
            if isinstance(op, Attention) and not self.node(op.out).computed:
                self._compute(self.node(op.out))
        ends = {}
        for v in stage.sends:
            self.sent[v.id] = view = self.f32(v)
            self.work.hold(view.buffer)
            ends[v.id] = len(self.work.planned)
        return StagePlan(stage, first, len(self.work.planned), ends, last)

    def arrange(self) -> dict[str, int]:
        """Bytes by purpose: of weights, of KV, and of what steps upload and work on."""
        uploads = sum(round_up(b.n_bytes, 16) for b in self.arrays.all)
        return {
            "weights": self.weights.n_bytes,
            "kv": sum(b.n_bytes for b in self.caches),
            "work": round_up(uploads, ALIGNMENT) + self.work.arrange(),
        }

    def place(self, weights: int, kv: int, work: int) -> None:
        """Give everything its address in memory of these three, after `arrange`."""
        self.weights.place(weights)
        for cache in self.caches:
            cache.address = kv
            kv += cache.n_bytes
        for buffer in self.arrays.all:
            buffer.address = work
            work += round_up(buffer.n_bytes, 16)
        self.work.place(round_up(work, ALIGNMENT))

    # --- values

    def node(self, v: Value) -> Node:
        return self._nodes[v.id]

    def is_by_row(self, v: Value) -> bool:
        return v.id in self._by_row

    def _count(self, v: Value) -> Count:
        return ROWS if v.id in self._by_row else TOKENS

    def is_sent(self, node: Node) -> bool:
        return node.value.id in self._sends

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
        """The value as float32, computed now if it has not been."""
        node = self.node(v)
        if node.f32 is None:
            self._compute(node)
        assert node.f32 is not None, "whoever computes a value whose readers want float32 gives it that form"
        return node.f32

    def forms(self, v: Value, wanted: set[str]) -> Forms:
        """The value in these forms ("f32", "q8", "half"), computed or converted now where it has not been."""
        node = self.node(v)
        if not node.computed:
            self._compute(node)
        missing = {form for form in wanted if getattr(node, form) is None}
        if missing:
            x, y = self.f32(v), self.new_forms(node, missing)
            self.add(node, elementwise.convert(self.arrays, node.count, x, y, node.value.width))
        return node.forms(wanted)

    def new_forms(self, node: Node, wanted: set[str]) -> Forms:
        """Room for a value in these forms."""
        n, width = self.most(node), node.value.width
        if "f32" in wanted:
            self.new_f32(node)
        if "q8" in wanted:
            node.q8 = Q8.room(min(n, FEW), width)
        if "half" in wanted:
            node.half = Half.room(n, width)
        return node.forms(wanted)

    def wants(self, node: Node) -> set[str]:
        """Forms that the readers of a value ask for, and float32 where others than products read it."""
        out = {"f32"} if self.is_sent(node) or not node.readers else set()
        for op in node.readers:
            if isinstance(op, Linear):
                out |= self.x_forms(node, [op.weight])
            elif isinstance(op, MixtureOfExperts) and op.x == node.value and op.router != node.value:
                out |= expert_forms(self, node, op)
            else:
                out.add("f32")
        return out

    def x_forms(self, node: Node, names: Sequence[str]) -> set[str]:
        """The forms of input that products with these weights read, in steps of few rows and of many."""
        plan = self.weights.plan(names)
        return {plan.few_form} | ({plan.many_form} if self.most(node) > FEW else set())

    # --- ops

    def _compute(self, node: Node) -> None:
        assert node.op is not None, "a value of another device is given, not computed"
        emit.of(node.op)(self, node, node.op)
