"""Fusion: groups of ops that a backend computes as one kernel, by its `Capabilities`.

    Product   matrix products of one input as one, a sum with a residual after a product or a mixture of experts
    Gated     a gated activation in the fused gate and up projection
    Norm      a norm with the sum, or the selection of rows, before it
    Attend    attention with the norm and the rotation of each head of queries and keys
    Group     any op alone

A new op is a group of its own, so a backend needs only its rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pyllm.backends.plan.graph import Graph
from pyllm.program import Op, Value, inputs
from pyllm.program.ops.attention import Attention
from pyllm.program.ops.elementwise import Add
from pyllm.program.ops.experts import MixtureOfExperts
from pyllm.program.ops.gate import GatedActivation
from pyllm.program.ops.linear import Linear
from pyllm.program.ops.norm import LayerNorm, RMSNorm
from pyllm.program.ops.rope import Rope
from pyllm.program.ops.select import SelectRows
from pyllm.records import dataclass


class Capabilities:
    """Fusions that a backend supports. This base supports none; backends override methods."""

    turns_in_place = False
    """Attention norms and rotates queries in place, so nothing else may read them afterwards."""

    def merge(self, a: Linear, b: Linear) -> bool:
        """Whether two products of one input can be one."""
        return False

    def add(self, product: Linear | MixtureOfExperts, other: Op | None, merged: bool) -> bool:
        """Whether a product and its sum with the value of `other` (None: received) can be one; `merged`: the product is
        part of a larger one."""
        return False

    def gate(self, gate: Linear, up: Linear, op: GatedActivation) -> bool:
        """Whether the gate and up projections, read by nothing else, and the activation can be one."""
        return False

    def norm_of_sum(self, op: RMSNorm | LayerNorm) -> bool:
        """Whether a norm and the sum before it can be one; the sum is stored if others read it."""
        return False

    def norm_of_rows(self, op: RMSNorm | LayerNorm) -> bool:
        """Whether a norm and the selection of rows before it can be one."""
        return False

    def turn(self, op: Attention) -> bool:
        """Whether attention and the norms and rotations of its queries and keys can be one; both are rotated by the
        same angles, or neither."""
        return False


@dataclass(frozen=True, eq=False)
class Group:
    """A fusion group; in this base class, a single op. The op's rule computes the group."""

    op: Op

    @property
    def ops(self) -> tuple[Op, ...]:
        """All ops of the group, each after its inputs."""
        return (self.op,)

    @property
    def out(self) -> Value:
        """The group's main value."""
        return self.op.out

    @property
    def outputs(self) -> tuple[Value, ...]:
        """Values that the group stores; those of its other ops never exist in memory."""
        return (self.out,)

    @property
    def inputs(self) -> Iterator[Value]:
        """Values that it reads, in the order in which they are best computed."""
        own = {op.out.id for op in self.ops}
        for op in reversed(self.ops):
            read = inputs(op)
            if isinstance(op, MixtureOfExperts):
                read.sort(key=lambda v: v != op.router)
            yield from (v for v in read if v.id not in own)


@dataclass(frozen=True, eq=False)
class Product(Group):
    """Products of one input, side by side; or one product, or a mixture of experts, with the sum of a residual."""

    products: tuple[Linear | MixtureOfExperts, ...]
    add: Add | None = None

    @property
    def ops(self) -> tuple[Op, ...]:
        return (*self.products, self.add) if self.add else self.products

    @property
    def out(self) -> Value:
        return self.add.out if self.add else self.op.out

    @property
    def outputs(self) -> tuple[Value, ...]:
        return (self.add.out,) if self.add else tuple(op.out for op in self.products)

    @property
    def residual(self) -> Value | None:
        """The residual that is added to the product."""
        if self.add is None:
            return None
        return self.add.b if self.add.a == self.op.out else self.add.a


@dataclass(frozen=True, eq=False)
class Gated(Group):
    """A gated activation, with the product of its gate and up projections."""

    op: GatedActivation
    product: Product

    @property
    def ops(self) -> tuple[Op, ...]:
        return (*self.product.ops, self.op)


@dataclass(frozen=True, eq=False)
class Norm(Group):
    """A norm, with the selection of rows and the sum before it; the sum is stored if others read it."""

    op: RMSNorm | LayerNorm
    add: Add | None = None
    select: SelectRows | None = None
    keeps_sum: bool = False

    @property
    def ops(self) -> tuple[Op, ...]:
        return tuple(op for op in (self.add, self.select, self.op) if op)

    @property
    def outputs(self) -> tuple[Value, ...]:
        return (self.add.out, self.op.out) if self.add and self.keeps_sum else (self.op.out,)


@dataclass(frozen=True)
class Heads:
    """Queries or keys, with the norm of each head and the rotation, in this order, before attention."""

    x: Value
    norm: RMSNorm | None = None
    rope: Rope | None = None

    @property
    def ops(self) -> tuple[Op, ...]:
        return tuple(op for op in (self.norm, self.rope) if op)


@dataclass(frozen=True, eq=False)
class Attend(Group):
    """Attention, with the norms and rotations of queries and keys. `k`: None where it has none of its own."""

    op: Attention
    q: Heads
    k: Heads | None

    @property
    def ops(self) -> tuple[Op, ...]:
        return (*self.q.ops, *(self.k.ops if self.k else ()), self.op)

    @property
    def inputs(self) -> Iterator[Value]:
        yield from (v for v in (self.q.x, self.k and self.k.x, self.op.v) if v)

    @property
    def rope(self) -> Rope | None:
        """The rotation of queries, and of keys where there are any."""
        return self.q.rope


class Groups:
    """The groups of a program; each op is in exactly one."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self.all = tuple(groups)
        self._of_value = {v.id: group for group in groups for v in group.outputs}

    def of(self, v: Value) -> Group | None:
        """The group that stores a value; None for received values and for those inside a group."""
        return self._of_value.get(v.id)


def fuse(graph: Graph, can: Capabilities) -> Groups:
    """Group the ops of a program, in order of the groups' last ops."""
    return _Fusion(graph, can).groups()


class _Fusion:
    """Groups under construction. Earlier passes take precedence over later ones."""

    def __init__(self, graph: Graph, can: Capabilities) -> None:
        self._graph, self._can = graph, can
        self._group_of: dict[int, Group] = {}
        """By the id of an op's value."""

    def groups(self) -> Groups:
        self._products()
        ops = self._graph.program.ops
        for op in ops:
            if isinstance(op, Attention):
                self._take(self._attend(op))
        for op in ops:
            if isinstance(op, RMSNorm | LayerNorm) and self._is_free(op):
                self._take(self._norm(op))
        for op in ops:
            if self._is_free(op):
                self._take(Group(op))
        order = {op.out.id: i for i, op in enumerate(ops)}
        found = {id(group): group for group in self._group_of.values()}
        return Groups(sorted(found.values(), key=lambda group: max(order[op.out.id] for op in group.ops)))

    def _take(self, group: Group) -> None:
        self._group_of |= {op.out.id: group for op in group.ops}

    def _is_free(self, op: Op) -> bool:
        return op.out.id not in self._group_of

    # --- products

    def _products(self) -> None:
        sums = dict(filter(None, map(self._sum_of_product, self._graph.program.ops)))
        for op in self._graph.program.ops:
            if isinstance(op, Linear) and self._is_free(op) and op.out.id not in sums:
                self._take(Product(op, self._siblings(op, set(sums))))
        for op in self._graph.program.ops:
            if isinstance(op, Linear | MixtureOfExperts) and self._is_free(op):
                group = Product(op, (op,), sums.get(op.out.id))
                self._take(group if self._can_add(group) else Product(op, (op,)))
        for op in self._graph.program.ops:
            if isinstance(op, GatedActivation) and (product := self._product_of_gate(op)):
                self._take(Gated(op, product))

    def _sum_of_product(self, op: Op) -> tuple[int, Add] | None:
        """A sum of which one side is a product that nothing else reads: the product's id, and the sum."""
        if isinstance(op, Add) and op.a != op.b:
            for v in (op.b, op.a):
                if isinstance(self._graph.producer(v), Linear | MixtureOfExperts) and self._graph.only_reader(v) is op:
                    return v.id, op
        return None

    def _siblings(self, op: Linear, summed: set[int]) -> tuple[Linear, ...]:
        """Products of the same input that can be merged with `op`, in the program's order."""
        found = [op]
        for o in self._graph.readers(op.x):
            if isinstance(o, Linear) and self._is_free(o) and o.out.id not in {*summed, *self._graph.sent}:
                known = any(o.weight == f.weight for f in found)
                if not known and op.out.id not in self._graph.sent and self._can.merge(op, o):
                    found.append(o)
        return tuple(found)

    def _can_add(self, group: Product) -> bool:
        if group.add is None or group.residual is None:
            return True
        other = self._graph.producer(group.residual)
        of_other = self._group_of.get(group.residual.id)
        merged = isinstance(of_other, Product) and len(of_other.products) > 1
        assert isinstance(group.op, Linear | MixtureOfExperts)
        return self._can.add(group.op, other, merged)

    def _product_of_gate(self, op: GatedActivation) -> Product | None:
        gate, up = self._graph.producer(op.gate), self._graph.producer(op.up)
        if not (isinstance(gate, Linear) and isinstance(up, Linear)):
            return None
        group = self._group_of[gate.out.id]
        alone = self._graph.only_reader(op.gate) is op and self._graph.only_reader(op.up) is op
        if not (alone and isinstance(group, Product) and group.products == (gate, up)):
            return None
        return group if self._can.gate(gate, up, op) else None

    # --- attention and norms

    def _attend(self, op: Attention) -> Attend:
        q = self._heads(op.q, op.head_dim) if self._can.turn(op) else Heads(op.q)
        if op.k is None:
            return Attend(op, q, None)
        k = self._heads(op.k, op.head_dim) if self._can.turn(op) else Heads(op.k)
        if _angles(q.rope) != _angles(k.rope):
            q, k = Heads(op.q), Heads(op.k)
        return Attend(op, q, k)

    def _heads(self, v: Value, head_dim: int) -> Heads:
        """The rotation and the norm of heads that lead to v and that nothing else reads."""
        graph, rope, norm, x = self._graph, None, None, v
        op = graph.producer(x)
        if isinstance(op, Rope) and op.head_dim == head_dim and graph.only_reader(x):
            rope, x = op, op.x
            op = graph.producer(x)
        if isinstance(op, RMSNorm) and op.group == head_dim and op.bias is None and graph.only_reader(x):
            norm, x = op, op.x
        if (norm or rope) and self._can.turns_in_place and not graph.only_reader(x):
            return Heads(v)
        return Heads(x, norm, rope)

    def _norm(self, op: RMSNorm | LayerNorm) -> Norm:
        """The norm with the selection or sum before it, if in the same stage."""
        graph, select = self._graph, None
        source = graph.producer(op.x)
        if isinstance(source, SelectRows) and graph.only_reader(op.x) and self._can.norm_of_rows(op):
            select, source = source, graph.producer(source.x)
        if not isinstance(source, Add) or not self._is_free(source) or not self._can.norm_of_sum(op):
            return Norm(op, None, select)
        keeps_sum = graph.only_reader(source.out) is None
        if (keeps_sum and select) or graph.stage(source) != graph.stage(op):
            return Norm(op, None, select)
        return Norm(op, source, select, keeps_sum)


def _angles(op: Rope | None) -> tuple[tuple[float, ...], float, bool] | None:
    """Parameters of a table of angles; rotations with equal ones share a table."""
    return (op.inv_freq, op.mscale, op.interleaved) if op else None
