"""Parts of a value: cases."""

from __future__ import annotations

from pyllm.program.ops.elementwise import Add, Scale
from pyllm.program.ops.select import JoinHeads, SelectRows, Slice
from pyllm.testing.models import Record

CASES: dict[str, Record] = {
    "slice": lambda b, x: b(Slice(x=x, start=16, width=40)),
    "slice_odd": lambda b, x: b(Slice(x=x, start=7, width=33)),
    "join_heads": lambda b, x: b(JoinHeads(a=x, b=b(Slice(x=x, start=16, width=48)), n_heads=4)),
    "join_odd": lambda b, x: b(JoinHeads(a=x, b=b(Slice(x=x, start=5, width=28)), n_heads=4)),
    "join_shared": lambda b, x: b(JoinHeads(a=x, b=b(Slice(x=x, start=5, width=7)), n_heads=8, shared=True)),
    "rows_before_others": lambda b, x: b(Add(a=b(SelectRows(x=x)), b=b(SelectRows(x=b(Scale(x=x, factor=0.5)))))),
}
