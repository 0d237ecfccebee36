"""A packed model on the CPU: one step is one walk over its table by all threads."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pyllm.backends.base import Batch, Crossing, Executable, HostCrossing, ImportanceSums
from pyllm.backends.cpu import linear
from pyllm.backends.cpu.lowering import Lowering
from pyllm.backends.cpu.table import (
    FIRST_WIDE,
    FIRST_WIDE_ROW,
    NARROW,
    NARROW_ROWS,
    NEVER,
    WIDE,
    WIDE_ROWS,
    Buffer,
    Encoded,
)
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
"""What else the process may take while it packs: chunks of decoded weights, Python itself."""


@dataclass(frozen=True, slots=True)
class _Output:
    """A result's rows, padded; `columns` of them count."""

    rows: NDArray[np.float32]
    columns: int


class CPUExecutable(Executable):
    """Weights, KV and work memory of one program; `pyllm.backends.cpu.lowering` plans what the table does."""

    def __init__(self, program: Program, weights: Mapping[str, TensorInfo], options: ExecutionOptions) -> None:
        self.program, self.options = program, options
        self._closed = False
        low = self._low = Lowering(program, weights, options)
        sizes = {
            "weights": low.weights.n_bytes,
            "kv": sum(low.page_bytes) * options.n_pages,
            "work": low.table.arrange() + low.table.scratch_bytes * options.n_threads,
        }
        if low.statistics:
            sizes["importance"] = low.statistics.n_bytes
        check_free({**sizes, "other": _HEADROOM})
        kernels = low.table.kernels() + [p.pack_kernel for p in low.weights.plans]
        addresses = LIBRARY.load([*Pool.KERNELS, *kernels], options.progress)
        self._pool = Pool(options.n_threads)
        try:
            low.weights.allocate()
            low.weights.pack(self._pool.run, options.progress)
            self._kv, self._work = Memory(sizes["kv"], "the KV cache"), Memory(sizes["work"], "work space")
        except BaseException:
            self._pool.close()
            low.weights.close()
            raise
        self._place()
        if low.statistics:
            low.statistics.allocate()
        self._step = aligned_zeros((32,), np.int64)
        low.step.address = int(self._step.ctypes.data)
        arrays = {value: self._output(buffer) for value, buffer in low.outputs.items()}
        self._outputs = {
            name: _Output(arrays[v.id], v.width) for name, v in (("logits", program.logits), ("hidden", program.hidden))
        }
        # Tables for steps of generated tokens, of prompts' tokens, of both. Without wide kernels all are the first.
        self._wide = linear.wide_supported(host())
        self._tables: dict[tuple[bool, bool], Encoded] = {
            (narrow, wide): low.table.encode(low.step.address, addresses, narrow=narrow, wide=wide)
            for narrow, wide in ((True, False), *(((False, True), (True, True)) if self._wide else ()))
        }
        self._n_entries = {"logits": len(low.table.entries), "hidden": low.n_hidden}
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
        low.table.place(scratch + low.table.scratch_bytes * n_threads, scratch)

    def _output(self, buffer: Buffer) -> NDArray[np.float32]:
        n = self.options.max_rows
        rows = aligned_zeros((n, buffer.n_bytes // (4 * n)), np.float32)
        buffer.address = int(rows.ctypes.data)
        return rows

    def run_stage(self, stage: int, batch: Batch, given: Sequence[Crossing], wanted: Sequence[Value]) -> list[Crossing]:
        if self._closed:
            raise ClosedError("The model was closed.")
        want = "hidden" if wanted[0] == self.program.hidden else "logits"
        output, n_rows = self._outputs[want], batch.n_rows
        if not batch.n_tokens:
            return [HostCrossing(output.rows[:0, : output.columns])]
        table, statistics = self._prepare(batch), self._low.statistics
        if statistics:
            statistics.begin()
        with self._lock:
            self._flag.value, self._running = 0, True
        try:
            done = self._pool.walk(table.address, table.n_ops(self._n_entries[want]), self._low.step.address + 8 * 13)
        finally:
            with self._lock:
                self._running = False
        if not done:
            raise KeyboardInterrupt
        if statistics:
            statistics.commit()
        return [HostCrossing(output.rows[:n_rows, : output.columns])]

    def profile(self, batch: Batch) -> list[tuple[str, float]]:
        """Run a step op by op; what each is called and the seconds it took, without those of the way from Python."""
        table = self._prepare(batch)

        def seconds(op: int, n_ops: int) -> float:
            start = time.perf_counter()
            self._pool.walk(table.address + 32 * op, n_ops)
            return time.perf_counter() - start

        idle = min(seconds(0, 0) for _ in range(20))
        return [(label, max(0.0, seconds(i, 1) - idle)) for i, label in enumerate(table.labels)]

    def _prepare(self, batch: Batch) -> Encoded:
        """Fill the step block; the table for such a batch."""
        if batch is not self._batch:
            self._adopt(batch)
        step = self._step
        step[1], step[3], step[4] = batch.n_tokens, batch.n_rows, batch.n_seqs
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
        """Point the step block to a batch's arrays. Their addresses are asked for once: that is what costs."""
        o = self.options
        if len(batch.tokens) > o.max_tokens or len(batch.spans) > o.max_seqs or len(batch.rows) > o.max_rows:
            raise RequestError("The batch was made for larger steps than this executable was compiled for.")
        if batch.page_size != o.page_size:
            raise RequestError(f"The batch has pages of {batch.page_size} positions, the KV cache of {o.page_size}.")
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
            raise ClosedError("The model was closed.")
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
        assert self._low.weights.memory is not None
        return {"weights": self._low.weights.memory.n_bytes, "kv": self._kv.n_bytes, "work": self._work.n_bytes}

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._pool.close()
        self._low.weights.close()
        self._kv.close()
        self._work.close()
        self._batch = None
