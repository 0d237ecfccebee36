"""Activation dtypes: the types in which the readers of a value want it. "f32" is shared, others are a backend's own."""

from __future__ import annotations

from collections.abc import Callable

from pyllm.backends.plan.graph import Graph
from pyllm.program import Value
from pyllm.program.ops.experts import MixtureOfExperts
from pyllm.program.ops.linear import Linear

OfProduct = Callable[[Value, list[str]], set[str]]
"""Activation dtypes in which products with these weights read a value."""


def wanted(graph: Graph, v: Value, of_product: OfProduct) -> set[str]:
    """Activation dtypes that the readers of a value want: matrix products their own, all other ops float32."""
    readers = graph.readers(v)
    out = {"f32"} if v.id in graph.sent or not readers else set()
    for op in readers:
        if isinstance(op, Linear):
            out |= of_product(v, [op.weight])
        elif isinstance(op, MixtureOfExperts) and op.x == v and op.router != v:
            out |= of_product(v, op.readers)
        else:
            out.add("f32")
    return out
