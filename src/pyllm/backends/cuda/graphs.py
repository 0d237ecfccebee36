"""Steps on a device: launches made ready once for each shape of step, and from the second use on one graph.

A step's sizes are rounded up to a few shapes. The first step of a shape launches kernel by kernel, which also compiles
what has not been; the second captures a graph; those that follow launch it, and no Python runs for a kernel.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pyllm.backends.base import Batch
from pyllm.backends.cuda.launch import KernelKey, StepShape
from pyllm.backends.cuda.memory import Planned
from pyllm.config import ExecutionOptions, Progress

if TYPE_CHECKING:
    from pyllm.backends.cuda.launcher import Graph, Kernel, Launcher

_MOST_SHAPES = 64
"""Shapes whose launches, and graphs, are kept; the one that was used longest ago goes first."""
_LEAST_CONTEXT = 256
_STEPS_AHEAD = 16
"""Steps that keep a device busy while a profile's launches are enqueued behind them."""


def power_of_two(n: int, most: int) -> int:
    """`n` rounded up to a power of two, or to the most that there can be."""
    return min(1 << (n - 1).bit_length(), most) if n else 0


def shape_of(batch: Batch, options: ExecutionOptions) -> StepShape:
    """The shape that a batch's step takes."""
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
    """A launch of one shape, with everything that the device wants."""

    kernel: Kernel
    grid: tuple[int, int, int]
    block: int
    args: NDArray[np.void]
    shared: int
    label: str


@dataclass(slots=True)
class _Shape:
    """What is kept of a shape: launches from its first use on, a graph from its second."""

    launches: list[Ready]
    graph: Graph | None = None


class Steps:
    """The launches of a program on one device. Buffers must have addresses before anything is run."""

    def __init__(self, launcher: Launcher, planned: Sequence[Planned]) -> None:
        self._launcher, self._planned = launcher, planned
        self._shapes: OrderedDict[tuple[int, int, StepShape], _Shape] = OrderedDict()
        self._kernels: dict[KernelKey, Kernel] = {}
        self.n_graphs = 0
        """Graphs captured so far."""

    def compile(self, shapes: Sequence[StepShape], progress: Progress | None) -> None:
        """Have the kernels that steps of these shapes need."""
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
        """Enqueue launches first .. stop - 1 of a step; `check` is called between them, and may raise."""
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
        """Run launches one by one; what each is called and the seconds it took on the device.

        Most kernels are shorter than it takes to launch them from here. So the device first gets whole steps to do, as
        graphs, and finds all launches there when it is done with them.
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
