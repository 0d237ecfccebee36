"""Steps on a device: launches prepared once for each shape of step, and one graph from the second use on.

A step's sizes are rounded up to a few shapes. The first step of a shape launches kernel by kernel, and compiles missing
kernels; the second captures a graph; later ones launch the graph, without Python per kernel.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pyllm.backends.base import Batch
from pyllm.backends.cuda.launch import KernelKey, StepShape
from pyllm.backends.cuda.memory import Planned
from pyllm.config import ExecutionOptions, Progress
from pyllm.records import dataclass

if TYPE_CHECKING:
    from pyllm.backends.cuda.launcher import Graph, Kernel, Launcher

_MOST_SHAPES = 64
"""Shapes kept with launches and graphs; the least recently used is dropped first."""
_LEAST_CONTEXT = 256
_STEPS_AHEAD = 16
"""Steps that keep a device busy while the launches of a profile are enqueued."""


def power_of_two(n: int, most: int) -> int:
    """`n` rounded up to a power of two, at most `most`."""
    return min(1 << (n - 1).bit_length(), most) if n else 0


def shape_of(batch: Batch, options: ExecutionOptions) -> StepShape:
    """The shape of a batch's step."""
    o, n_seqs = options, batch.n_seqs
    spans = batch.spans[:n_seqs]
    last = spans[:, 0] + spans[:, 1] - 1  # of each sequence, its last token
    n_tokens = power_of_two(batch.n_tokens, o.max_tokens)
    return StepShape(
        n_tokens=n_tokens,
        n_rows=power_of_two(batch.n_rows, o.max_rows),
        n_seqs=power_of_two(n_seqs, o.max_seqs),
        n_generated=n_tokens if batch.n_generated == batch.n_tokens else 0,
        max_context=power_of_two(
            max(_LEAST_CONTEXT, int(batch.positions[last].max()) + 1), max(_LEAST_CONTEXT, o.n_pages * o.page_size)
        ),
        max_span=power_of_two(int(spans[:, 1].max()), o.max_tokens),
    )


@dataclass(frozen=True, slots=True)
class Ready:
    """A launch of one shape, ready for the device."""

    kernel: Kernel
    grid: tuple[int, int, int]
    block: int
    args: NDArray[np.void]
    shared: int
    label: str


@dataclass(slots=True)
class _Shape:
    """A shape's launches, from its first use, and graph, from its second."""

    launches: list[Ready]
    graph: Graph | None = None


class Steps:
    """A program's launches on one device. Buffers must have addresses before anything is run."""

    def __init__(self, launcher: Launcher, planned: Sequence[Planned]) -> None:
        self._launcher, self._planned = launcher, planned
        self._shapes: OrderedDict[tuple[int, int, StepShape], _Shape] = OrderedDict()
        self._kernels: dict[KernelKey, Kernel] = {}
        self.n_graphs = 0
        """Graphs captured so far."""

    def compile(self, shapes: Sequence[StepShape], progress: Progress | None) -> None:
        """Compile the kernels that steps of these shapes need."""
        wanted: dict[tuple[str, tuple[tuple[str, int | str], ...]], dict[str, KernelKey]] = {}
        for p in self._planned:
            key = p.launch.key
            if key not in self._kernels and any(_needed(p, s) for s in shapes):
                wanted.setdefault(key[:2], {})[key[2]] = key
        if not wanted:
            return
        requests = [(source, dict(defines), list(names)) for (source, defines), names in wanted.items()]
        self._launcher.prepare(requests, (lambda share: progress("compiling kernels", share)) if progress else None)
        for request, names in zip(requests, wanted.values(), strict=True):
            self._kernels.update(zip(names.values(), self._launcher.kernels(*request), strict=True))

    def run(self, first: int, stop: int, shape: StepShape, check: Callable[[], None]) -> None:
        """Enqueue launches first .. stop - 1 of a step; `check` is called between them and may raise."""
        key = first, stop, shape
        kept = self._shapes.get(key)
        if kept is None:
            ready = self.ready(first, stop, shape)
            for r in ready:
                check()
                self._launch(r)
            self._shapes[key] = _Shape(ready)
            if len(self._shapes) > _MOST_SHAPES:
                self._shapes.popitem(last=False)
            return
        self._shapes.move_to_end(key)
        if kept.graph is None and kept.launches:
            with self._launcher.capture() as graph:
                for r in kept.launches:
                    self._launch(r)
            kept.graph = graph
            self.n_graphs += 1
        check()
        if kept.graph is not None:
            kept.graph.launch()

    def ready(self, first: int, stop: int, shape: StepShape) -> list[Ready]:
        """The launches of a shape, in order."""
        self.compile([shape], None)
        out = []
        for p in self._planned[first:stop]:
            if _needed(p, shape):
                launch = p.launch
                kernel, grid = self._kernels[launch.key], launch.grid(shape)
                out.append(Ready(kernel, grid, launch.block, launch.args(shape), launch.shared, launch.label))
        return out

    def profile(self, first: int, stop: int, shape: StepShape) -> list[tuple[str, float]]:
        """Run launches one by one; returns each one's label and seconds on the device.

        Most kernels take less time than their launch from Python. So the device is first given whole steps, as graphs;
        when they are done, all launches are enqueued.
        """
        for _ in range(2 + _STEPS_AHEAD):  # the first two make the graph
            self.run(first, stop, shape, lambda: None)
        ready = self.ready(first, stop, shape)
        events = [self._launcher.record(timing=True)]
        for r in ready:
            self._launch(r)
            events.append(self._launcher.record(timing=True))
        events[-1].wait()
        return [(r.label, b.seconds_since(a)) for r, a, b in zip(ready, events, events[1:], strict=False)]

    def _launch(self, r: Ready) -> None:
        self._launcher.launch(r.kernel, r.grid, r.block, r.args, r.shared)

    def close(self) -> None:
        self._shapes.clear()
        self._kernels.clear()


def _needed(p: Planned, shape: StepShape) -> bool:
    return p.launch.when(shape) and not (p.of_output_rows and not shape.n_rows)


def wait(done: Callable[[], bool], check: Callable[[], None]) -> None:
    """Until `done()`; Ctrl-C, and what `check` raises, come through within a millisecond or so."""
    spin_until = time.perf_counter() + 0.02
    while not done():
        check()
        if time.perf_counter() > spin_until:
            time.sleep(0.0005)
