"""A lane: where a step is computed, with work memory and output arrays of its own.

An executable has one for steps of any size. Where another step may run while one is paused, it has a second one, for
few tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pyllm.backends.base import Batch, Crossing, HostCrossing
from pyllm.backends.cpu import linear
from pyllm.backends.cpu.kernels.attention_scratch import GENERATED
from pyllm.backends.cpu.lowering import Lowering
from pyllm.backends.cpu.table import (
    FIRST_WIDE,
    FIRST_WIDE_ROW,
    NARROW,
    NARROW_ROWS,
    NEVER,
    SOURCES,
    STATE_IN,
    WIDE,
    WIDE_ROWS,
    Encoded,
    round_up,
)
from pyllm.backends.cpu.weights import Weights
from pyllm.backends.plan.memory import Buffer
from pyllm.config import ExecutionOptions
from pyllm.errors import RequestError
from pyllm.gguf.tensor import TensorInfo
from pyllm.jit.compiler import Kernel
from pyllm.jit.memory import aligned_zeros, at
from pyllm.jit.target import host
from pyllm.program import Program, Value
from pyllm.quant import formats

_SPARE = 32
"""Tokens of a side step beside one of each sequence: those that a constraint forces."""


def plan(
    program: Program, weights: Mapping[str, TensorInfo], options: ExecutionOptions, packed: Weights | None = None
) -> list[Lowering]:
    """The lowerings of an executable's lanes: the main one, and the side's where steps may be paused. `packed`: weights
    of another program."""
    main = Lowering(program, weights, options, packed=packed)
    alone = min(options.max_seqs, options.max_tokens, options.max_rows) == 1
    if program.cuts or alone or options.collect_importance:
        return [main]
    n = options.max_seqs
    n_spare = max(_SPARE, options.max_drafts)
    few = replace(
        options,
        max_tokens=min(n + n_spare, options.max_tokens),
        max_rows=min(n + options.max_drafts, options.max_rows),
    )
    return [main, Lowering(program, weights, few, main)]


def sizes(lowerings: Sequence[Lowering]) -> dict[str, int]:
    """Bytes of an executable by purpose. Assigns offsets of work memory, so it is called once."""
    each = [low.sizes() for low in lowerings]
    return {purpose: sum(size[purpose] for size in each) for purpose in each[0]}


class Lane:
    """A lowering whose memory is placed: its STEP block, output arrays and encoded tables."""

    def __init__(self, low: Lowering, work: int, addresses: dict[Kernel, int]) -> None:
        """`work`: the address of its work memory, `Lowering.arena_bytes`; scratch memory has its address."""
        self.options = low.options
        self._low = low
        low.table.work.place(work)
        if low.statistics:
            low.statistics.allocate()
        self._step = aligned_zeros((32,), np.int64)
        low.step.address = int(self._step.ctypes.data)
        self._step[NEVER] = 1 << 62
        self._of_output_rows = low.graph.of_output_rows
        self._stages = low.program.stages
        self._outputs = {v.id: self._output(low.outputs[v.id], v.width) for stage in self._stages for v in stage.sends}
        # Tables for decode, for prefill, and for both in one step. Without prefill kernels all three are the first.
        self._wide = linear.wide_supported(host())
        self._tables: dict[tuple[bool, bool], Encoded] = {
            (narrow, wide): low.table.encode(low.step.address, addresses, narrow=narrow, wide=wide)
            for narrow, wide in ((True, False), *(((False, True), (True, True)) if self._wide else ()))
        }
        self._batch: Batch | None = None

    @staticmethod
    def _output(buffer: Buffer, width: int) -> NDArray[np.float32]:
        """An output array [rows, width]; rows are padded to whole vectors."""
        ld = round_up(width, 16)
        rows = aligned_zeros((buffer.n_bytes // (4 * ld), ld), np.float32)
        buffer.address = int(rows.ctypes.data)
        return rows[:, :width]

    def receive(self, stage: int, given: Sequence[Crossing]) -> None:
        """Copy the values that a stage receives into work memory."""
        for value, crossing in zip(self._stages[stage].receives, given, strict=True):
            rows, view = crossing.host(), self._low.given[value.id]
            at(view.address, (len(rows), view.ld // 4), np.float32)[:, : value.width] = rows

    def range(self, stage: int, wanted: Sequence[Value]) -> tuple[int, int]:
        """The entries to run for a stage: of the last one, up to the last wanted value."""
        entries = self._low.ranges[stage]
        is_last = stage == len(self._low.ranges) - 1
        return entries.start, max(entries.complete[v.id] for v in wanted) if is_last and wanted else entries.stop

    def results(self, batch: Batch, wanted: Sequence[Value]) -> list[Crossing]:
        """Values that have been computed: views of the output arrays."""
        n = batch.n_tokens, batch.n_rows
        return [HostCrossing(self._outputs[v.id][: n[v.id in self._of_output_rows]]) for v in wanted]

    def prepare(self, batch: Batch) -> Encoded:
        """Fill the STEP block; returns the table for this batch."""
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
            which = (batch.positions if rows.of_positions else batch.tokens)[: batch.n_tokens]
            self._decode_rows(rows.table, which, rows.scale, rows.view.address, rows.view.ld)
        return self._tables[n_narrow > 0, n_wide > 0]

    def _adopt(self, batch: Batch) -> None:
        """Point the step block to a batch's arrays. Addresses are looked up once per batch, since that is slow."""
        o = self.options
        if len(batch.tokens) > o.max_tokens or len(batch.spans) > o.max_seqs or len(batch.rows) > o.max_rows:
            raise RequestError("the batch was made for larger steps than this executable was compiled for")
        if batch.n_slots != o.n_slots:
            raise RequestError(f"the batch was made for {batch.n_slots} slots, this executable has {o.n_slots}")
        if batch.page_size != o.page_size:
            raise RequestError(f"the batch has pages of {batch.page_size} positions, the KV cache of {o.page_size}")
        arrays = (batch.tokens, batch.positions, batch.seqs, batch.spans, batch.page_tables)
        self._step[5:10] = [a.ctypes.data for a in arrays]
        self._step[10] = batch.page_tables.strides[0]
        self._step[11] = batch.rows.ctypes.data
        states = (batch.state_in, batch.saves, batch.save_after, batch.save_slot)
        self._step[STATE_IN : STATE_IN + 4] = [a.ctypes.data for a in states]
        self._step[SOURCES] = batch.sources.ctypes.data
        self._batch = batch

    def _decode_rows(self, table: str, tokens: NDArray[np.int32], scale: float, address: int, ld: int) -> None:
        tensor = self._low.weights[table]
        data = tensor.data.reshape(tensor.shape[0], -1)
        out = at(address, (len(tokens), ld // 4), np.float32)
        out[:, : tensor.shape[-1]] = formats.get(tensor.format).decode(data[tokens]) * np.float32(scale)

    def rewrite(self) -> None:
        """Write the tables' arguments again: weights were replaced."""
        for table in self._tables.values():
            table.rewrite()

    def close(self) -> None:
        """Let go of the batch."""
        self._batch = None
