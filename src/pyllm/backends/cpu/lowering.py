"""Lowering from a program to a table: fusion groups become entries, in order; values get the activation dtypes that
their readers want.

Fusion and order are planned before (`backends/plan`). A value is stored as float32, as quantized activations ("q8"
records, kernels/activation.py), or both.

A stage of a part ends when its values to send are computed and its keys and values stored; values that only later
stages read may be computed there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pyllm.backends.cpu import linear
from pyllm.backends.cpu.arguments.elementwise import Quantize
from pyllm.backends.cpu.attention import KVLayout, RopeTable
from pyllm.backends.cpu.fusions import Fusions
from pyllm.backends.cpu.kernels import kernel
from pyllm.backends.cpu.rules import emit
from pyllm.backends.cpu.statistics import Statistics
from pyllm.backends.cpu.table import (
    FIRST_WIDE,
    FIRST_WIDE_ROW,
    LINE,
    NARROW,
    NARROW_ROWS,
    NEVER,
    WIDE,
    WIDE_ROWS,
    Table,
    View,
    round_up,
)
from pyllm.backends.cpu.values import HostRows, Node, Range
from pyllm.backends.cpu.weights import Weights
from pyllm.backends.plan import forms
from pyllm.backends.plan.graph import Graph
from pyllm.backends.plan.groups import Group, fuse
from pyllm.backends.plan.memory import Buffer
from pyllm.backends.plan.schedule import Schedule
from pyllm.config import ExecutionOptions
from pyllm.errors import BackendError
from pyllm.gguf.tensor import TensorInfo
from pyllm.program import Op, Program, Recurrent, Stage, Value
from pyllm.program.ops.experts import MixtureOfExperts


class Lowering:
    """The lowered program. After construction everything is planned and nothing has an address."""

    def __init__(
        self,
        program: Program,
        tensors: Mapping[str, TensorInfo],
        options: ExecutionOptions,
        main: Lowering | None = None,
        packed: Weights | None = None,
    ) -> None:
        """`main`: the lowering of the same program for larger steps, whose weights, caches and memory of single ops
        (scratch, attention's parts) this one uses too; it has an address before this one. `packed`: weights of another
        program that are packed already."""
        self.program, self.options = program, options
        self._is_side = main is not None
        self.arena_bytes = 0
        """Bytes of work memory without scratch and arrays; known after `sizes`."""
        self.weights: Weights = main.weights if main else Weights(tensors, packed)
        self.table: Table = Table(scratch=main.table.scratch) if main else Table()
        self.step = Buffer(0, outside=True)
        self.caches: list[Buffer] = main.caches if main else [Buffer(0, outside=True) for _ in program.kv]
        self.page_bytes = [KVLayout(spec, options.page_size, options.kv_dtype).page_bytes for spec in program.kv]
        self.slots: list[Buffer] = main.slots if main else [Buffer(0, outside=True) for _ in program.slots]
        self.slot_bytes = [round_up(4 * spec.n_numbers, LINE) for spec in program.slots]
        """Bytes from one slot's state to the next's, by number of the state."""
        self.host_rows: list[HostRows] = []
        self.ropes: dict[RopeTable, View] = {}
        self.shared: Buffer = main.shared if main else Buffer(0, keep=True)
        self.statistics = Statistics() if options.collect_importance else None
        emit.check(program)
        self.graph = Graph(program)
        self.groups = fuse(self.graph, Fusions(self.graph, self.weights.__getitem__, self._only_wide))
        self._nodes = {v.id: Node(v, v.id in self.graph.of_output_rows) for v in program.values()}
        self.outputs = {
            v.id: Buffer(self._most(v) * self._ld(v.width), outside=True)
            for stage in program.stages
            for v in stage.sends
        }
        """Arrays of values to send, valid until the next step."""
        self.given: dict[int, View] = {}
        """Buffers of received values, filled when the receiving stage begins."""
        for stage in program.stages:
            for v in stage.receives:
                self.given[v.id] = self.node(v).f32 = self.rows_f32(self._most(v), v.width)
        schedule = Schedule(self.graph, self.groups)
        self.ranges = [self._stage(stage, schedule.stage(i)) for i, stage in enumerate(program.stages)]

    def _stage(self, stage: Stage, order: Iterable[tuple[Op, list[Group]]]) -> Range:
        start, complete = len(self.table.entries), {}
        for v in stage.receives:
            self.table.touch(self.given[v.id].buffer, start)
        for root, groups in order:
            for group in groups:
                emit.of(group.op)(self, self.node(group.out), group.op)
            if root.out in stage.sends:
                self.f32(root.out)
                complete[root.out.id] = len(self.table.entries)
        return Range(start, len(self.table.entries), complete)

    @property
    def array_bytes(self) -> int:
        """Bytes of work memory outside the table's: values to send, sums of squares."""
        arrays = sum(round_up(buffer.n_bytes, LINE) for buffer in self.outputs.values())
        return arrays + (self.statistics.n_bytes if self.statistics else 0)

    @property
    def scratch_bytes(self) -> int:
        return self.table.scratch.ld * self.options.n_threads

    def sizes(self) -> dict[str, int]:
        """Bytes by purpose, less what is its main lowering's. Assigns offsets of work memory, so it is called once."""
        self.arena_bytes = self.table.arrange()
        work = self.arena_bytes + self.array_bytes
        if self._is_side:
            return {"weights": 0, "kv": 0, "work": work}
        kv = sum(self.page_bytes) * self.options.n_pages + sum(self.slot_bytes) * self.options.n_slots
        return {"weights": self.weights.n_bytes, "kv": kv, "work": work + self.scratch_bytes}

    # --- values

    def node(self, v: Value) -> Node:
        return self._nodes[v.id]

    def range(self, node: Node) -> View:
        """Address of the (first, count) of a value's rows."""
        return View(self.step, 16, 16 if node.of_output_rows else 0)

    def wide_from(self, node: Node) -> View:
        """Address of the first row with a bfloat16 record: the prefill path's rows, of values that only plain products
        read.

        Expert inputs and output rows always use the 8-bit path, so that results do not depend on the batch; with
        `many_rows`, output rows use the prefill path.
        """
        first = FIRST_WIDE_ROW if node.of_output_rows else FIRST_WIDE
        return View(self.step, 0, 8 * (first if self.may_be_wide(node) else NEVER))

    def may_be_wide(self, node: Node) -> bool:
        few = node.of_output_rows and not self.options.many_rows
        return not few and not any(isinstance(op, MixtureOfExperts) for op in self.graph.readers(node.value))

    def _only_wide(self, v: Value, x: Value) -> bool:
        return self.wanted(v) == {"q8"} and all(
            self.may_be_wide(Node(u, u.id in self.graph.of_output_rows)) for u in (v, x)
        )

    def narrow(self, node: Node) -> View:
        """Address of the (first, count) of a value's rows on the 8-bit path, if it may have others."""
        return View(self.step, 0, 8 * (NARROW_ROWS if node.of_output_rows else NARROW))

    def wide(self, node: Node) -> View:
        """The same of its rows on the prefill path."""
        return View(self.step, 0, 8 * (WIDE_ROWS if node.of_output_rows else WIDE))

    def most_rows(self, node: Node) -> int:
        return self._most(node.value)

    def _most(self, v: Value) -> int:
        return self.options.max_rows if v.id in self.graph.of_output_rows else self.options.max_tokens

    def f32(self, v: Value) -> View:
        """The value as float32."""
        view = self.node(v).f32
        if view is None:
            op = self.graph.producer(v)
            raise BackendError(f"the CPU backend has no float32 form of {type(op).__name__}")
        return view

    def q8(self, v: Value) -> View:
        """The value as quantized activations, computed now if needed."""
        node = self.node(v)
        if node.q8 is None:
            self.quantize(node, self.f32(v))
        assert node.q8 is not None
        return node.q8

    def states(self, op: Recurrent) -> View:
        """The op's recurrent state in each slot."""
        return View(self.slots[op.state], self.slot_bytes[op.state])

    def form(self, v: Value, form: str) -> View:
        return self.q8(v) if form == "q8" else self.f32(v)

    def new_f32(self, node: Node) -> View:
        """Buffer for the value as float32: the output array, if it is an output."""
        out = node.value
        if out.id in self.outputs:
            node.f32 = View(self.outputs[out.id], self._ld(out.width))
        else:
            node.f32 = self.rows_f32(self.most_rows(node), out.width)
        return node.f32

    def new_forms(self, node: Node) -> View | None:
        """Buffers for a value in the dtypes that its readers want; returns the float32 one, if any."""
        wants = self.wants(node)
        if "q8" in wants:
            node.q8 = self.rows_q8(self.most_rows(node), node.value.width)
        return self.new_f32(node) if "f32" in wants else None

    def rows_f32(self, n: int, width: int) -> View:
        """Buffer of n float32 rows, one cache line longer: vectors read to the next multiple of 16 columns."""
        return View(Buffer(n * self._ld(width) + 64), self._ld(width))

    def rows_q8(self, n: int, width: int) -> View:
        ld = 2 * round_up(width, 32)
        return View(Buffer(n * ld), ld)

    @staticmethod
    def _ld(width: int) -> int:
        return 4 * round_up(width, 16)

    def wants(self, node: Node) -> set[str]:
        """Activation dtypes that the readers of a value want."""
        return self.wanted(node.value)

    def wanted(self, v: Value) -> set[str]:
        return forms.wanted(self.graph, v, lambda _, weights: self._product_forms(weights))

    def _product_forms(self, weights: list[str]) -> set[str]:
        return {*map(self.x_form, weights), *(["f32"] if self.statistics else [])}

    def x_form(self, weight: str) -> str:
        """Activation dtype of the input of products with this weight."""
        t = self.weights[weight]
        return linear.plan(t.format, t.shape[-2], t.shape[-1]).x_form

    def observe(self, v: Value, weights: list[str]) -> None:
        """Collect the importance of the weights that multiply a value, if requested."""
        if self.statistics:
            rows = self.range(self.node(v))
            self.statistics.observe(self.table, v.id, weights, self.f32(v), v.width, rows, 1)

    def quantize(self, node: Node, x: View, selects_rows: int = 0) -> None:
        """Add the value's quantized activations: of its rows x, or of the output rows of x."""
        node.q8 = self.rows_q8(self.most_rows(node), node.value.width)
        self.table.add(
            kernel("elementwise", "quantize"),
            Quantize(
                x=x, records=node.q8, columns=node.value.width, rows=self.range(node), selects_rows=selects_rows,
                wide_from=self.wide_from(node),
            ),
            label="quantize",
        )  # fmt: skip
