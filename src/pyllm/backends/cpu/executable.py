"""A packed model on the CPU: a step is one walk of all threads over its table."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.backends import pages
from pyllm.backends.base import Batch, Crossing, Executable, ImportanceSums, Want
from pyllm.backends.cpu import lane as lanes
from pyllm.backends.cpu.lane import Lane
from pyllm.backends.cpu.linear import wide_supported
from pyllm.backends.cpu.lowering import Lowering
from pyllm.backends.cpu.table import Encoded
from pyllm.backends.cpu.walker import Walker
from pyllm.backends.cpu.weights import Weights
from pyllm.config import ExecutionOptions
from pyllm.errors import BackendError
from pyllm.gguf.tensor import TensorInfo
from pyllm.jit.compiler import LIBRARY
from pyllm.jit.memory import Memory, at, check_free
from pyllm.jit.target import host
from pyllm.jit.threads import Pool
from pyllm.program import Program, Value
from pyllm.records import dataclass

_HEADROOM = 64 << 20
"""Bytes of headroom while packing: chunks of decoded weights, Python itself."""


class SideExecutable(Executable):
    """Steps of few tokens, by the threads, weights and cache of another executable, which frees all of them."""

    def __init__(self, program: Program, lane: Lane, walker: Walker) -> None:
        self.program, self.options = program, lane.options
        self._lane, self._walker = lane, walker

    def run_stage(self, stage: int, batch: Batch, given: Sequence[Crossing], wanted: Sequence[Value]) -> list[Crossing]:
        self._walker.check_open()
        if batch.n_tokens:
            start, stop = self._lane.range(0, wanted)
            table = self._lane.prepare(batch)
            self._walker.walk(table, table.n_ops(start), table.n_ops(stop))
        return self._lane.results(batch, wanted)

    def interrupt(self) -> None:
        self._walker.interrupt()

    def memory(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        pass


@dataclass(slots=True)
class _Paused:
    """A step that has come as far as `op`."""

    table: Encoded
    op: int
    n_ops: int
    batch: Batch
    wants: Sequence[Want]


class CPUExecutable(Executable):
    """Weights, KV cache and work memory of one program; `pyllm.backends.cpu.lowering` plans the table."""

    def __init__(
        self,
        program: Program,
        weights: Mapping[str, TensorInfo],
        options: ExecutionOptions,
        packed: Weights | None = None,
    ) -> None:
        self.program, self.options = program, options
        lowerings = lanes.plan(program, weights, options, packed)
        low = self._low = lowerings[0]
        sizes = self._sizes = lanes.sizes(lowerings)
        check_free({**sizes, "other": _HEADROOM})
        kernels = low.table.kernels() + [p.pack_kernel for p in low.weights.plans]
        addresses = LIBRARY.load([*Pool.KERNELS, *kernels], options.progress)
        self._walker = Walker(options.n_threads)
        try:
            low.weights.allocate()
            low.weights.pack(self._walker.pool.run, options.progress)
            self._kv = Memory(sizes["kv"], "the KV cache")
            self._work = Memory(sizes["work"] - sum(low.array_bytes for low in lowerings), "work space")
        except BaseException:
            self._walker.close()
            low.weights.close()
            raise
        self._place_caches(low)
        address = low.table.scratch.address = self._work.address
        address += low.scratch_bytes
        self._lanes: list[Lane] = []
        for low in lowerings:
            self._lanes.append(Lane(low, address, addresses))
            address += low.arena_bytes
        self._lane = self._lanes[0]
        if len(self._lanes) > 1:
            self.side = SideExecutable(program, self._lanes[1], self._walker)
        self._table: Encoded | None = None
        self._paused: _Paused | None = None
        self.page_bytes, self.slot_bytes = sum(low.page_bytes), sum(low.slot_bytes)
        # The processor decides which kernels there are, and so the last bits of what they store.
        self.page_format = f"cpu 1, {host().cpu} {host().isa}{' wide' if wide_supported(host()) else ''}"

    def _place_caches(self, low: Lowering) -> None:
        address = self._kv.address
        for state, n_bytes in zip(low.slots, low.slot_bytes, strict=True):  # first: kernels want them at cache lines
            state.address = address
            address += n_bytes * self.options.n_slots
        for cache, n_bytes in zip(low.caches, low.page_bytes, strict=True):
            cache.address = address
            address += n_bytes * self.options.n_pages

    def run_stage(self, stage: int, batch: Batch, given: Sequence[Crossing], wanted: Sequence[Value]) -> list[Crossing]:
        self._walker.check_open()
        lane, statistics = self._lane, self._low.statistics
        if not batch.n_tokens:
            return lane.results(batch, wanted)
        if stage == 0:
            self._paused = None
            self._table = lane.prepare(batch)
            if statistics:
                statistics.begin()
        table = self._table
        assert table is not None, "a step begins with stage 0"
        lane.receive(stage, given)
        start, stop = lane.range(stage, wanted)
        self._walker.walk(table, table.n_ops(start), table.n_ops(stop))
        if statistics and stage == len(self._low.ranges) - 1:
            statistics.commit()
        return lane.results(batch, wanted)

    def begin(self, batch: Batch, wants: Sequence[Want], seconds: float) -> list[Any] | None:
        if self.side is None:
            return super().begin(batch, wants, seconds)
        wanted = self._wanted(wants)
        self._walker.check_open()
        if not batch.n_tokens:
            return self.run_all(batch, wants)
        table = self._lane.prepare(batch)
        self._paused = _Paused(table, 0, table.n_ops(self._lane.range(0, wanted)[1]), batch, wants)
        return self.proceed(seconds)

    def proceed(self, seconds: float) -> list[Any] | None:
        self._walker.check_open()
        if (paused := self._paused) is None:
            raise BackendError("no step is paused; begin one")
        self._paused = None  # where it fails
        paused.op = self._walker.walk(paused.table, paused.op, paused.n_ops, seconds)
        if paused.op < paused.n_ops:
            self._paused = paused
            return None
        return self._results(paused.wants, self._lane.results(paused.batch, self._wanted(paused.wants)))

    def profile(self, batch: Batch) -> list[tuple[str, float]]:
        """Run a step op by op; returns each op's label and seconds, without the overhead of calls from Python."""
        table, pool = self._lane.prepare(batch), self._walker.pool

        def seconds(op: int, n_ops: int) -> float:
            start = time.perf_counter()
            pool.walk(table.address + 32 * op, n_ops)
            return time.perf_counter() - start

        idle = min(seconds(0, 0) for _ in range(20))
        return [(label, max(0.0, seconds(i, 1) - idle)) for i, label in enumerate(table.labels)]

    def beside(
        self, program: Program, weights: Mapping[str, TensorInfo], options: ExecutionOptions
    ) -> CPUExecutable | None:
        return CPUExecutable(program, weights, options, self._low.weights)

    def importance(self) -> ImportanceSums:
        return self._low.statistics.result() if self._low.statistics else super().importance()

    def replace(self, weights: Mapping[str, TensorInfo]) -> None:
        self._walker.check_open()
        self._paused = None
        self._low.weights.replace(weights, self._walker.pool.run)
        for lane in self._lanes:
            lane.rewrite()

    def read_page(self, page: int) -> NDArray[np.uint8]:
        return pages.joined(self._blocks(page))

    def write_page(self, page: int, data: NDArray[np.uint8]) -> None:
        pages.spread(data, self._blocks(page))

    def read_slot(self, slot: int) -> NDArray[np.uint8]:
        return pages.joined(self._states(slot))

    def write_slot(self, slot: int, data: NDArray[np.uint8]) -> None:
        pages.spread(data, self._states(slot), "slot")

    def _blocks(self, page: int) -> list[NDArray[np.uint8]]:
        """A page's memory in each cache."""
        self._walker.check_open()
        sizes = self._low.page_bytes
        return [at(c.address + n * page, (n,), np.uint8) for c, n in zip(self._low.caches, sizes, strict=True)]

    def _states(self, slot: int) -> list[NDArray[np.uint8]]:
        """A slot's memory in each array of states."""
        self._walker.check_open()
        sizes = self._low.slot_bytes
        return [at(s.address + n * slot, (n,), np.uint8) for s, n in zip(self._low.slots, sizes, strict=True)]

    def interrupt(self) -> None:
        self._walker.interrupt()

    def memory(self) -> dict[str, int]:
        if self._walker.closed:
            return {"weights": 0, "kv": 0, "work": 0}
        return dict(self._sizes)

    def close(self) -> None:
        if self._walker.closed:
            return
        self._walker.close()
        self._low.weights.close()
        self._kv.close()
        self._work.close()
        self._paused = None
        for lane in self._lanes:
            lane.close()
