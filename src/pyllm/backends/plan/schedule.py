"""The order of groups: each after its inputs, as late as the stages' required values allow."""

from __future__ import annotations

from collections.abc import Iterator

from pyllm.backends.plan.graph import Graph
from pyllm.backends.plan.groups import Group, Groups
from pyllm.program import Op


class Schedule:
    """Walks the stages of a program in order. Groups that nothing reads are left out."""

    def __init__(self, graph: Graph, groups: Groups) -> None:
        self._graph, self._groups = graph, groups
        self._done: set[int] = set()

    def stage(self, stage: int) -> Iterator[tuple[Op, list[Group]]]:
        """Required ops of a stage (`Graph.roots`), each with the groups to compute for it."""
        for op in self._graph.roots(stage):
            found: list[Group] = []
            group = self._groups.of(op.out)
            if group is not None:
                self._visit(group, found)
            yield op, found

    def _visit(self, group: Group, found: list[Group]) -> None:
        if id(group) in self._done:
            return
        self._done.add(id(group))
        for v in group.inputs:
            if (before := self._groups.of(v)) is not None:
                self._visit(before, found)
        found.append(group)
