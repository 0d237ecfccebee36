"""A packed model on the CPU: a step is one walk of all threads over its table."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pyllm.backends.base import Batch, Crossing, Executable, HostCrossing, ImportanceSums
from pyllm.backends.cpu import linear
from pyllm.backends.cpu.kernels.attention_scratch import GENERATED
from pyllm.backends.cpu.lowering import Lowering
from pyllm.backends.cpu.table import (
    FIRST_WIDE,
    FIRST_WIDE_ROW,
    NARROW,
    NARROW_ROWS,
    NEVER,
    WIDE,
    WIDE_ROWS,
    Encoded,
    round_up,
)
from pyllm.backends.plan.memory import Buffer
from pyllm.config import ExecutionOptions
from pyllm.errors import ClosedError, RequestError
from pyllm.gguf.tensor import TensorInfo
from pyllm.jit.compiler import LIBRARY
from pyllm.jit.memory import Memory, aligned_zeros, at, check_free
from pyllm.jit.target import host
from pyllm.jit.threads import Pool
from pyllm.program import Program, Value
from pyllm.quant import formats

_HEADROOM = 64 << 20
"""Bytes of headroom while packing: chunks of decoded weights, Python itself."""


class CPUExecutable(Executable):
    """Weights, KV cache and work memory of one program; `pyllm.backends.cpu.lowering` plans the table."""

    def __init__(self, program: Program, weights: Mapping[str, TensorInfo], options: ExecutionOptions) -> None:
        self.program, self.options = program, options
        self._closed = False
        low = self._low = Lowering(program, weights, options)
        sizes = self._sizes = low.sizes()
        check_free({**sizes, "other": _HEADROOM})
        kernels = low.table.kernels() + [p.pack_kernel for p in low.weights.plans]
        addresses = LIBRARY.load([*Pool.KERNELS, *kernels], options.progress)
        self._pool = Pool(options.n_threads)
        try:
            low.weights.allocate()
            low.weights.pack(self._pool.run, options.progress)
            self._kv = Memory(sizes["kv"], "the KV cache")
            self._work = Memory(sizes["work"] - low.array_bytes, "work space")
        except BaseException:
            self._pool.close()
            low.weights.close()
            raise
        self._place()
        if low.statistics:
            low.statistics.allocate()
        self._stages, self._of_output_rows = program.stages, low.graph.of_output_rows
        self._step = aligned_zeros((32,), np.int64)
        low.step.address = int(self._step.ctypes.data)
        self._outputs = {
            v.id: self._output(low.outputs[v.id], v.width) for stage in program.stages for v in stage.sends
        }
        # Tables for decode, for prefill, and for both in one step. Without prefill kernels all three are the first.
        self._wide = linear.wide_supported(host())
        self._tables: dict[tuple[bool, bool], Encoded] = {
            (narrow, wide): low.table.encode(low.step.address, addresses, narrow=narrow, wide=wide)
            for narrow, wide in ((True, False), *(((False, True), (True, True)) if self._wide else ()))
        }
        self._table = next(iter(self._tables.values()))
        self._step[NEVER] = 1 << 62
        self._flag = ctypes.c_int64.from_address(low.step.address + 8 * 13)
        self._running = False
        self._lock = threading.RLock()  # a signal handler may interrupt the thread that holds it
        self._batch: Batch | None = None

    def _place(self) -> None:
        low, n_threads = self._low, self.options.n_threads
        address = self._kv.address
        for cache, n_bytes in zip(low.caches, low.page_bytes, strict=True):
            cache.address = address
            address += n_bytes * self.options.n_pages
        scratch = self._work.address
        low.table.place(scratch + low.table.scratch.ld * n_threads, scratch)

    @staticmethod
    def _output(buffer: Buffer, width: int) -> NDArray[np.float32]:
        """An output array [rows, width]; rows are padded to whole vectors."""
        ld = round_up(width, 16)
        rows = aligned_zeros((buffer.n_bytes // (4 * ld), ld), np.float32)
        buffer.address = int(rows.ctypes.data)
        return rows[:, :width]

    def run_stage(self, stage: int, batch: Batch, given: Sequence[Crossing], wanted: Sequence[Value]) -> list[Crossing]:
        if self._closed:
            raise ClosedError("the model was closed")
        statistics, is_last = self._low.statistics, stage == len(self._low.ranges) - 1
        if not batch.n_tokens:
            return [HostCrossing(self._outputs[v.id][:0]) for v in wanted]
        if stage == 0:
            self._table = self._prepare(batch)
            if statistics:
                statistics.begin()
        for value, crossing in zip(self._stages[stage].receives, given, strict=True):
            self._take(value, crossing.host())
        entries = self._low.ranges[stage]
        stop = max(entries.complete[v.id] for v in wanted) if is_last and wanted else entries.stop
        self._walk(self._table, entries.start, stop)
        if statistics and is_last:
            statistics.commit()
        n = batch.n_tokens, batch.n_rows
        return [HostCrossing(self._outputs[v.id][: n[v.id in self._of_output_rows]]) for v in wanted]

    def _take(self, value: Value, rows: NDArray[np.float32]) -> None:
        view = self._low.given[value.id]
        at(view.address, (len(rows), view.ld // 4), np.float32)[:, : value.width] = rows

    def _walk(self, table: Encoded, start: int, stop: int) -> None:
        """Run entries. Raises KeyboardInterrupt."""
        first = table.n_ops(start)
        with self._lock:
            self._flag.value, self._running = 0, True
        try:
            n_ops = table.n_ops(stop) - first
            done = self._pool.walk(table.address + 32 * first, n_ops, self._low.step.address + 8 * 13)
        finally:
            with self._lock:
                self._running = False
        if not done:
            raise KeyboardInterrupt

    def profile(self, batch: Batch) -> list[tuple[str, float]]:
        """Run a step op by op; returns each op's label and seconds, without the overhead of calls from Python."""
        table = self._prepare(batch)

        def seconds(op: int, n_ops: int) -> float:
            start = time.perf_counter()
            self._pool.walk(table.address + 32 * op, n_ops)
            return time.perf_counter() - start

        idle = min(seconds(0, 0) for _ in range(20))
        return [(label, max(0.0, seconds(i, 1) - idle)) for i, label in enumerate(table.labels)]

    def _prepare(self, batch: Batch) -> Encoded:
        """Fill the step block; returns the table for this batch."""
        if batch is not self._batch:
            self._adopt(batch)
        step = self._step
        step[1], step[3], step[4] = batch.n_tokens, batch.n_rows, batch.n_seqs
        step[GENERATED] = batch.n_generated
        n_narrow = batch.n_generated if self._wide else batch.n_tokens
        n_wide = batch.n_tokens - n_narrow
        step[FIRST_WIDE] = n_narrow
        step[NARROW + 1], step[WIDE], step[WIDE + 1] = n_narrow, n_narrow, n_wide
        if self.options.many_rows:
            n_few = int(np.searchsorted(batch.rows[: batch.n_rows], n_narrow))
            step[FIRST_WIDE_ROW] = step[NARROW_ROWS + 1] = step[WIDE_ROWS] = n_few
            step[WIDE_ROWS + 1] = batch.n_rows - n_few
        for rows in self._low.host_rows:
            self._decode_rows(rows.table, batch.tokens[: batch.n_tokens], rows.scale, rows.view.address, rows.view.ld)
        return self._tables[n_narrow > 0, n_wide > 0]

    def _adopt(self, batch: Batch) -> None:
        """Point the step block to a batch's arrays. Addresses are looked up once per batch, since that is slow."""
        o = self.options
        if len(batch.tokens) > o.max_tokens or len(batch.spans) > o.max_seqs or len(batch.rows) > o.max_rows:
            raise RequestError("the batch was made for larger steps than this executable was compiled for")
        if batch.page_size != o.page_size:
            raise RequestError(f"the batch has pages of {batch.page_size} positions, the KV cache of {o.page_size}")
        arrays = (batch.tokens, batch.positions, batch.seqs, batch.spans, batch.page_tables)
        self._step[5:10] = [a.ctypes.data for a in arrays]
        self._step[10] = batch.page_tables.strides[0]
        self._step[11] = batch.rows.ctypes.data
        self._batch = batch

    def _decode_rows(self, table: str, tokens: NDArray[np.int32], scale: float, address: int, ld: int) -> None:
        tensor = self._low.weights[table]
        data = tensor.data.reshape(tensor.shape[0], -1)
        out = at(address, (len(tokens), ld // 4), np.float32)
        out[:, : tensor.shape[-1]] = formats.get(tensor.format).decode(data[tokens]) * np.float32(scale)

    def importance(self) -> ImportanceSums:
        return self._low.statistics.result() if self._low.statistics else super().importance()

    def replace(self, weights: Mapping[str, TensorInfo]) -> None:
        if self._closed:
            raise ClosedError("the model was closed")
        self._low.weights.replace(weights, self._pool.run)
        for table in self._tables.values():
            table.rewrite()

    def interrupt(self) -> None:
        with self._lock:
            if self._running:
                self._flag.value = 1

    def memory(self) -> dict[str, int]:
        if self._closed:
            return {"weights": 0, "kv": 0, "work": 0}
        return dict(self._sizes)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._pool.close()
        self._low.weights.close()
        self._kv.close()
        self._work.close()
        self._batch = None
