"""A mixture of experts in a table: route, sort, gather, three grouped matrix products, combine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.backends.cpu.arguments import experts as arguments
from pyllm.backends.cpu.kernels import kernel
from pyllm.backends.cpu.ops.gate import add_gate, add_rows
from pyllm.backends.cpu.rules import emit
from pyllm.backends.cpu.table import NEVER, View
from pyllm.backends.plan.groups import Product
from pyllm.backends.plan.memory import Buffer
from pyllm.program.ops.experts import MixtureOfExperts
from pyllm.records import dataclass

if TYPE_CHECKING:
    from pyllm.backends.cpu.lowering import Lowering
    from pyllm.backends.cpu.values import Node


@dataclass(frozen=True)
class _Routing:
    """Routing of tokens. A row is one token at one of its experts; rows are sorted by expert."""

    op: MixtureOfExperts
    n_rows: int
    """Most rows."""
    chosen: Buffer
    weights: Buffer
    ranges: Buffer
    slot_of: Buffer
    row_of: Buffer

    @property
    def all_rows(self) -> View:
        """(first, count) of all rows, after those of the experts."""
        return View(self.ranges, 16, 16 * self.op.n_matrices)


@emit(MixtureOfExperts)
def experts(low: Lowering, node: Node, op: MixtureOfExperts) -> None:
    """Emit a mixture; `node` is its value, or that of its sum with a residual."""
    group, source = low.groups.of(node.value), low.node(op.x)
    residual = low.f32(group.residual) if isinstance(group, Product) and group.residual else None
    routing = _route(low, source, op)
    gate, up = _inner(low, routing)
    q8 = low.x_form(op.down) == "q8"
    active = low.rows_q8(routing.n_rows, op.n_ff) if q8 else low.rows_f32(routing.n_rows, op.n_ff)
    y, record = (None, active) if q8 else (active, None)
    if low.statistics:
        y = y or low.rows_f32(routing.n_rows, op.n_ff)
    never = View(low.step, 0, 8 * NEVER)
    if gate is None:
        compiled = kernel("elementwise", "activation", act=op.act)
        add_rows(low, compiled, op.act, up, up, y, record, op.n_ff, routing.all_rows, never)
    else:
        add_gate(low, op.act, gate, up, y, record, op.n_ff, routing.all_rows, never, limit=op.limit)
    if low.statistics and y:
        _observe(low, routing, [op.down], y, op.n_ff)
    down = _product(low, routing, active, [op.down], [op.down_bias], [op.down_scale])
    out, r = low.new_f32(node), routing
    low.table.add(
        kernel("experts", "combine"),
        arguments.Combine(
            x=down, y=out, residual=residual, weights=None if op.weighs_input else r.weights,
            n_used=op.n_used, row_of=r.row_of, columns=op.out.width, rows=low.range(source),
        ),
        label="combine experts",
    )  # fmt: skip


def _inner(low: Lowering, r: _Routing) -> tuple[View | None, View]:
    """The gate, if experts have one, and what it gates, or the activation's input."""
    op = r.op
    formats, forms = {low.weights[name].format for name in op.readers}, [low.x_form(name) for name in op.readers]
    fused = op.gate is not None and len(formats) == 1 and op.n_ff % 16 == 0 and not (op.gate_scale or op.up_scale)
    rows = {form: _gather(low, r, form) for form in forms}
    if low.statistics:
        seen = rows["f32"] if "f32" in rows and not op.weighs_input else _gather(low, r, "f32")
        _weigh(low, r, seen, op.x.width)
        _observe(low, r, op.readers, seen, op.x.width)
    if fused:
        both = _product(low, r, rows[forms[0]], op.readers, [op.gate_bias, op.up_bias], [None] * 2)
        _weigh(low, r, both, 2 * op.n_ff)
        return both, View(both.buffer, both.ld, 4 * op.n_ff)
    gate = _product(low, r, rows[forms[0]], [op.gate], [op.gate_bias], [op.gate_scale]) if op.gate else None
    up = _product(low, r, rows[forms[-1]], [op.up], [op.up_bias], [op.up_scale])
    for y in filter(None, (gate, up)):
        _weigh(low, r, y, op.n_ff)
    return gate, up


def _weigh(low: Lowering, r: _Routing, y: View, columns: int) -> None:
    """The products of weighed inputs, out of those of the inputs; where inputs are weighed."""
    if r.op.weighs_input:
        low.table.add(
            kernel("experts", "weigh"),
            arguments.Weigh(x=y, weights=r.weights, slot_of=r.slot_of, columns=columns, rows=r.all_rows),
            label="weigh experts",
        )


def _route(low: Lowering, source: Node, op: MixtureOfExperts) -> _Routing:
    logits = low.f32(op.router)
    n = low.most_rows(source) * op.n_used
    r = _Routing(op, n, Buffer(4 * n), Buffer(4 * n), Buffer(16 * (op.n_matrices + 1)), Buffer(4 * n), Buffer(4 * n))
    bias = low.weights.vector([(op.choice_bias, op.n_experts)])[0] if op.choice_bias else None
    low.table.need_scratch(8 * op.n_experts + 4 * op.n_groups)
    low.table.add(
        kernel("experts", "route", gating=op.gating),
        arguments.Route(
            logits=logits, n_experts=op.n_experts, n_used=op.n_used, chosen=r.chosen, weights=r.weights,
            normalize=int(op.normalize), factor=op.weight_scale, bias=bias, sharing=op.sharing, n_groups=op.n_groups,
            n_groups_used=op.n_groups_used, rows=low.range(source), scratch=low.table.scratch,
        ),
        label="choose experts",
    )  # fmt: skip
    low.table.add(
        kernel("experts", "sort"),
        arguments.Sort(
            chosen=r.chosen, n_used=op.n_used, n_experts=op.n_matrices, ranges=r.ranges, slot_of=r.slot_of,
            row_of=r.row_of, rows=low.range(source),
        ),
        label="sort by expert",
    )  # fmt: skip
    return r


def _gather(low: Lowering, r: _Routing, form: str) -> View:
    """Gather the input of each row."""
    x, width = low.form(r.op.x, form), r.op.x.width
    out = low.rows_q8(r.n_rows, width) if form == "q8" else low.rows_f32(r.n_rows, width)
    low.table.add(
        kernel("experts", "gather"),
        arguments.Gather(x=x, y=out, n_used=r.op.n_used, slot_of=r.slot_of, rows=r.all_rows),
        label="gather",
    )
    return out


def _observe(low: Lowering, r: _Routing, weights: list[str], x: View, columns: int) -> None:
    """Collect the importance of experts' weights from their rows."""
    assert low.statistics is not None
    low.statistics.observe(low.table, None, weights, x, columns, View(r.ranges, 16), r.op.n_matrices)


def _product(
    low: Lowering, r: _Routing, x: View, names: list[str], biases: list[str | None], scales: list[str | None]
) -> View:
    """Each expert's product with its rows; several tensors side by side, scaled ones separately."""
    plan, w = low.weights.matrix(names)
    width = plan.rows // len(names)
    bias, bias_bytes = None, 0
    if any(biases):
        bias, bias_bytes = low.weights.vector([(b, width) for b in biases], r.op.n_matrices)
    y = low.rows_f32(r.n_rows, plan.rows)
    scaled = scales[0] is not None
    low.table.add(
        plan.kernel,
        plan.args(
            w=w, x=x, y=y, bias=None if scaled else bias, ranges=r.ranges, n_groups=r.op.n_matrices,
            bias_stride=bias_bytes,
        ),
        label=f"experts {plan.format} {plan.rows}x{plan.columns}",
    )  # fmt: skip
    if scaled:
        factors, _ = low.weights.vector([(scales[0], r.op.n_matrices)])
        low.table.add(
            kernel("experts", "adjust"),
            arguments.Adjust(
                x=y, scales=factors, biases=bias, bias_stride=bias_bytes, chosen=r.chosen, slot_of=r.slot_of,
                columns=width, rows=r.all_rows,
            ),
            label="scale experts",
        )  # fmt: skip
    return y
