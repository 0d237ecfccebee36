"""Planning without a kernel: groups of ops as written down for each architecture, and what they must not change."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from oracle import OPTIONS, Builder, Model, Shape, Step, one_op, run, transformer

import arch_models
from pyllm import archs, backends
from pyllm.backends import placement
from pyllm.backends.base import Batch
from pyllm.backends.plan import arena, forms
from pyllm.backends.plan.graph import Graph, last_uses
from pyllm.backends.plan.groups import Attend, Capabilities, Gated, Group, Groups, Heads, Norm, Product, fuse
from pyllm.backends.plan.memory import Buffer, Work
from pyllm.backends.plan.schedule import Schedule
from pyllm.backends.reference.backend import ReferenceExecutable
from pyllm.backends.reference.rules import rule
from pyllm.gguf import open_gguf
from pyllm.program import Op, Program, Value, inputs, weight_names
from pyllm.program.ops.attention import Attention
from pyllm.program.ops.elementwise import Add, Scale
from pyllm.program.ops.experts import MixtureOfExperts
from pyllm.program.ops.linear import Linear
from pyllm.program.ops.norm import RMSNorm
from pyllm.program.ops.rope import Rope
from pyllm.program.ops.select import SelectRows
from pyllm.testing.splitting import SHAPES

GROUPS = Path(__file__).parent / "groups"
ARCHS = [name for name in arch_models.names() if "." not in name]
"""A variant has other numbers, and the same groups."""


class Everything(Capabilities):
    """All that there is to fuse."""

    turns_in_place = True

    def merge(self, *of: Any) -> bool:
        return True

    add = gate = norm_of_sum = norm_of_rows = turn = merge


class Some(Capabilities):
    """Chance decides, for each question anew."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self.turns_in_place = self._random.random() < 0.5

    def merge(self, *of: Any) -> bool:
        return self._random.random() < 0.5

    add = gate = norm_of_sum = norm_of_rows = turn = merge


# --- what is fused


def told(group: Group) -> str:
    """A group in a line."""

    def names(op: Op) -> str:
        return " ".join([type(op).__name__, *(n.removesuffix(".weight") for n in weight_names(op))])

    def heads(h: Heads) -> str:
        return " ".join([type(op).__name__ for op in h.ops] or ["plain"])

    if isinstance(group, Product):
        return " | ".join(map(names, group.products)) + " + residual" * (group.add is not None)
    if isinstance(group, Gated):
        return f"{told(group.product)} -> {group.op.act}"
    if isinstance(group, Norm):
        of = " of rows" * (group.select is not None) + " of sum" * (group.add is not None) + ", kept" * group.keeps_sum
        return names(group.op) + of
    if isinstance(group, Attend):
        return f"{names(group.op)}: q {heads(group.q)}" + (f", k {heads(group.k)}" if group.k else "")
    return names(group.op)


def schedule(program: Program, can: Capabilities) -> tuple[Graph, Groups, list[Group]]:
    graph = Graph(program)
    groups = fuse(graph, can)
    order = Schedule(graph, groups)
    return graph, groups, [g for i in range(len(program.stages)) for _, found in order.stage(i) for g in found]


@pytest.mark.parametrize("name", ARCHS)
def test_groups_of_architectures(name: str, arch_file: Callable[[str], Path]) -> None:
    with open_gguf(arch_file(name)) as file:
        program = archs.load(file.metadata, file.tensors, 256).program
    lines = [told(group) for group in schedule(program, Everything())[2]]
    assert lines == (GROUPS / f"{name}.txt").read_text().splitlines()


def test_groups_of_a_plain_llama() -> None:
    order = schedule(transformer(Shape(n_layers=1, qk_norm=True)).program, Everything())[2]
    assert [told(group) for group in order] == [
        "Embed token_embd",
        "RMSNorm blk.0.attn_norm",
        "Linear blk.0.attn_q | Linear blk.0.attn_k | Linear blk.0.attn_v",
        "Attention: q RMSNorm Rope, k RMSNorm Rope",
        "SelectRows",
        "SelectRows",
        "Linear blk.0.attn_output + residual",
        "RMSNorm blk.0.ffn_norm",
        "Linear blk.0.ffn_gate | Linear blk.0.ffn_up -> silu",
        "Linear blk.0.ffn_down + residual",
        "RMSNorm output_norm",
        "Linear output",
    ]


def groups_of(record: Callable[[Builder, Value], Value], can: Capabilities | None = None) -> list[str]:
    return [told(group) for group in schedule(one_op(record).program, can or Everything())[2]][1:]


def test_equal_weights_are_not_stored_twice_in_one_product() -> None:
    def record(b: Builder, x: Value) -> Value:
        w, other = b.t("w", 64, 64), b.t("other", 64, 64)
        p, q, r = (b(Linear(x=x, weight=name)) for name in (w, w, other))
        return b(Add(a=b(Scale(x=p, factor=2.0)), b=b(Add(a=b(Scale(x=q, factor=3.0)), b=r))))

    products = [line for line in groups_of(record) if line.startswith("Linear")]
    assert sorted(products) == ["Linear other + residual", "Linear w", "Linear w"]


def test_a_product_that_two_read_is_computed_by_itself() -> None:
    def record(b: Builder, x: Value) -> Value:
        y = b(Linear(x=x, weight=b.t("w", 64, 64)))
        return b(Add(a=b(Add(a=x, b=y)), b=y))

    assert groups_of(record)[:3] == ["Linear w", "Add", "Add"]


def test_a_norm_takes_the_sum_that_others_read_along() -> None:
    def record(b: Builder, x: Value) -> Value:
        total = b(Add(a=x, b=b(Scale(x=x, factor=2.0))))
        return b(Add(a=total, b=b(Scale(x=b(RMSNorm(x=total, weight=None, eps=1e-5)), factor=3.0))))

    assert groups_of(record)[:4] == ["Scale", "RMSNorm of sum, kept", "Scale", "Add"]


@pytest.mark.parametrize(("read_by_others", "in_place"), [(True, True), (True, False), (False, True)])
def test_queries_are_turned_in_place_where_nothing_else_reads_them(read_by_others: bool, in_place: bool) -> None:
    can = Everything()
    can.turns_in_place = in_place

    def record(b: Builder, x: Value) -> Value:
        q, k, v = (b(Linear(x=x, weight=b.t(n, 64, 64))) for n in "qkv")
        turned = (b(Rope(x=y, head_dim=32, inv_freq=(1.0, 0.5))) for y in (q, k))
        y = b(Attention(q=next(turned), k=next(turned), v=v, n_heads=2, n_kv_heads=2, head_dim=32, v_head_dim=32,
                        scale=1.0))  # fmt: skip
        return b(Add(a=y, b=b(Scale(x=q, factor=2.0)))) if read_by_others else y

    attention = next(line for line in groups_of(record, can) if line.startswith("Attention"))
    assert attention == ("Attention: q plain, k plain" if read_by_others and in_place else "Attention: q Rope, k Rope")


def test_a_backend_that_can_nothing_computes_op_by_op() -> None:
    program = transformer().program
    order = schedule(program, Capabilities())[2]
    assert all(group.ops == (group.op,) for group in order)
    assert {id(group.op) for group in order} == {id(op) for op in program.ops}


# --- what fusion must not change


def programs() -> Iterator[Program]:
    for shape in SHAPES.values():
        program = transformer(shape).program
        yield program
        for seed in range(4):
            random = Random(seed)
            devices = [random.choice("ab") for _ in program.ops]
            yield from placement.cut(program, devices).programs.values()


PROGRAMS = list(programs())


@given(st.sampled_from(PROGRAMS), st.integers(0, 1 << 30))
def test_each_group_has_what_it_reads_and_hides_only_what_no_other_reads(program: Program, seed: int) -> None:
    graph, groups = Graph(program), fuse(Graph(program), Some(seed))
    assert sorted(op.out.id for group in groups.all for op in group.ops) == sorted(op.out.id for op in program.ops)
    for group in groups.all:
        own, there = {op.out.id for op in group.ops}, {v.id for v in group.outputs}
        for op in group.ops:
            if op.out.id not in there:
                assert op.out.id not in graph.sent
                assert {reader.out.id for reader in graph.readers(op.out)} <= own
    order, known = Schedule(graph, groups), set[int]()
    for i, stage in enumerate(program.stages):
        known |= {v.id for v in stage.receives}
        for root, found in order.stage(i):
            for group in found:
                assert {v.id for v in group.inputs} <= known
                known |= {v.id for v in group.outputs}
            assert root.out.id in known
        assert {v.id for v in stage.sends} <= known


class ByGroups(ReferenceExecutable):
    """Computes groups, of which nothing but their inputs is known to them, and nothing but their outputs afterwards."""

    def __init__(self, model: Model, tensors: Mapping[str, Any], can: Capabilities) -> None:
        super().__init__(model.program, tensors, OPTIONS)
        self.order = schedule(model.program, can)[2]

    def step(self, batch: Batch) -> NDArray[np.float32]:
        state: dict[int, Any] = {}
        for group in self.order:
            within = {v.id: state[v.id] for v in group.inputs}
            for op in group.ops:
                within[op.out.id] = rule.of(op)(self, op, batch, within)
            state |= {v.id: within[v.id] for v in group.outputs}
        return state[self.program.logits.id]


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("can", [Everything(), *map(Some, range(3))], ids=["everything", "some", "others", "more"])
def test_groups_give_what_the_program_gives(name: str, can: Capabilities) -> None:
    model = transformer(SHAPES[name])
    tensors = model.tensors()
    whole, grouped = backends.get("reference").compile(model.program, tensors, OPTIONS), ByGroups(model, tensors, can)
    for steps in ([Step([3, 1, 4, 1, 5], 0, [2])], [Step([9, 2], 5, [2]), Step([6], 0, [0])]):
        batch = Batch(OPTIONS)
        for step in steps:
            batch.add(step.tokens, step.position, step.pages, step.want)
        np.testing.assert_array_equal(grouped.step(batch), run(whole, steps))


# --- stages, forms, live ranges


def test_what_a_stage_must_compute() -> None:
    program = transformer(Shape(n_layers=1)).program
    devices = ["b" if isinstance(op, Linear) and "ffn" in op.weight else "a" for op in program.ops]
    part = placement.cut(program, devices).programs["a"]
    graph = Graph(part)
    assert len(part.stages) > 1
    assert [type(op).__name__ for op in graph.roots(0)] == ["Attention", "RMSNorm"]
    assert all(op.out.id in graph.sent or op.keeps_state for i in range(len(part.stages)) for op in graph.roots(i))


def test_a_fused_norm_stays_in_the_stage_of_its_sum() -> None:
    for program in PROGRAMS:
        graph = Graph(program)
        for group in fuse(graph, Everything()).all:
            if isinstance(group, Norm) and group.add:
                assert graph.stage(group.add) == graph.stage(group.op)


def test_forms_are_those_of_all_readers() -> None:
    model = transformer(Shape(n_layers=1, n_experts=4))
    graph = Graph(model.program)

    def of_product(v: Value, weights: list[str]) -> set[str]:
        return {"float" if "inp" in name else "small" for name in weights}

    wanted = {op: forms.wanted(graph, op.out, of_product) for op in model.program.ops}
    experts = next(op for op in wanted if isinstance(op, MixtureOfExperts))
    normed = graph.producer(experts.x)
    assert normed is not None
    assert wanted[normed] == {"float", "small"}
    assert forms.wanted(graph, experts.router, of_product) == {"f32"}
    assert forms.wanted(graph, model.program.hidden, of_product) == {"f32", "small"}
    rows = next(op for op in wanted if isinstance(op, SelectRows))
    assert wanted[rows] <= {"f32", "small"}


def test_last_uses() -> None:
    program = transformer(Shape(n_layers=1)).program
    last = last_uses(program.ops)
    for i, op in enumerate(program.ops):
        for v in (*inputs(op), op.out):
            assert (v.id in last[i]) == all(v not in inputs(later) for later in program.ops[i + 1 :])


@given(st.lists(st.tuples(st.integers(1, 500), st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=40))
def test_an_arena_has_no_two_buffers_in_one_place(items: list[tuple[int, int, int]]) -> None:
    work = Work(64)
    buffers = [Buffer(n) for n, _, _ in items]
    for b, (_, x, y) in zip(buffers, items, strict=True):
        work.touch(b, x)
        work.touch(b, y)
    total = arena.arrange(buffers, 64)
    alive = [sum(-(-b.n_bytes // 64) * 64 for b in buffers if b.first <= t <= b.last) for t in range(31)]
    assert max(alive) <= total <= sum(-(-b.n_bytes // 64) * 64 for b in buffers)
    for i, a in enumerate(buffers):
        assert a.address % 64 == 0
        for b in buffers[:i]:
            apart = a.address + a.n_bytes <= b.address or b.address + b.n_bytes <= a.address
            assert apart or a.last < b.first or b.last < a.first


def test_what_is_held_outlives_the_plan() -> None:
    work, held, kept = Work(1), Buffer(10), Buffer(20, keep=True)
    work.hold(held, 3)
    work.touch(kept, 5)
    for at in range(4, 8):
        work.touch(Buffer(7), at)
    assert work.arrange() == 10 + 20 + 7
    assert (kept.first, kept.last > 1 << 30, held.first, held.last > 1 << 30) == (0, True, 3, True)
