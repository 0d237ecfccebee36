"""The reference backend: walks the program op by op, keeps the KV cache in pages, decodes weights at use."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pyllm.backends import pages
from pyllm.backends.base import (
    Backend,
    Batch,
    Crossing,
    DeviceInfo,
    Executable,
    HostCrossing,
    ImportanceSums,
    Probe,
)
from pyllm.backends.plan.graph import last_uses
from pyllm.backends.reference.rules import F32, State, rule
from pyllm.backends.reference.weights import KEEP_BYTES, Weights
from pyllm.config import ExecutionOptions
from pyllm.errors import ClosedError, OutOfMemoryError
from pyllm.gguf.tensor import TensorInfo
from pyllm.program import Program, Value


class ReferenceBackend(Backend):
    """numpy, on any machine: slow, simple, float32."""

    name = "reference"
    collects_importance = replaces_weights = keeps_recurrent_states = reads_sources = exact_in_company = True

    def probe(self) -> Probe:
        return Probe(self.name, True, device=platform.processor() or platform.machine())

    def gpus(self) -> list[DeviceInfo]:
        return []

    def compile(
        self, program: Program, weights: Mapping[str, TensorInfo], options: ExecutionOptions
    ) -> ReferenceExecutable:
        self.check(program, options)
        rule.check(program)
        return ReferenceExecutable(program, weights, options)

    def memory_needed(
        self, program: Program, weights: Mapping[str, TensorInfo], options: ExecutionOptions
    ) -> dict[str, int]:
        """As the base says; weights are counted decoded, up to the budget that is kept."""
        self.check(program, options)
        sizes = super().memory_needed(program, weights, options)
        decoded = sum(4 * weights[name].n_elements for name in program.weights())
        return {**sizes, "weights": min(decoded, KEEP_BYTES)}


class ReferenceExecutable(Executable):
    """`_state` holds the values of the step that runs; KV caches are [n_pages, page_size, n_kv_heads, dim], recurrent
    states [n_slots, *shape]."""

    def __init__(self, program: Program, weights: Mapping[str, TensorInfo], options: ExecutionOptions) -> None:
        self.program, self.options, self._stages = program, options, program.stages
        self.weights = Weights(weights, program.weights())
        dtype = np.float16 if options.kv_dtype == "f16" else np.float32
        shape = (options.n_pages, options.page_size)
        try:
            self.keys = [np.zeros((*shape, spec.n_kv_heads, spec.head_dim), dtype) for spec in program.kv]
            self.values = [np.zeros((*shape, spec.n_kv_heads, spec.v_head_dim), dtype) for spec in program.kv]
            self.slots = [np.zeros((options.n_slots, *spec.shape), np.float32) for spec in program.slots]
        except MemoryError as error:
            positions = options.n_pages * options.page_size
            raise OutOfMemoryError(f"a cache of {positions} positions does not fit; a smaller context would") from error
        self.page_bytes = sum(cache[0].nbytes for cache in (*self.keys, *self.values))
        self.slot_bytes = sum(states[0].nbytes for states in self.slots)
        self.page_format = "reference 1"
        self._last_use, self._of_output_rows = last_uses(program.ops), program.of_output_rows()
        self._state: State = {}
        self._sums: ImportanceSums = {}
        self._seen: list[tuple[str, int, int, NDArray[np.float64], int]] = []
        self._interrupted = False
        self._closed = False

    def run_stage(self, stage: int, batch: Batch, given: Sequence[Crossing], wanted: Sequence[Value]) -> list[Crossing]:
        if self._closed:
            raise ClosedError("the executable was closed")
        cut, state = self._stages[stage], self._state
        if stage == 0:
            self._interrupted = False
            state.clear()
            self._seen.clear()
        is_last = stage == len(self._stages) - 1
        missing = {v.id for v in wanted} if is_last and wanted else {-1}
        for value, crossing in zip(cut.receives, given, strict=True):
            state[value.id] = crossing.host()
        results: dict[int, F32] = {}
        for at in range(cut.start, cut.stop):
            if not missing:
                break
            self.check_interrupt()
            op = self.program.ops[at]
            state[op.out.id] = rule.of(op)(self, op, batch, state)
            if op.out in wanted:
                results[op.out.id] = state[op.out.id]
                missing.discard(op.out.id)
            for spent in self._last_use[at]:
                state.pop(spent, None)
        if is_last:
            self._commit()
            state.clear()
        return [HostCrossing(results[v.id]) for v in wanted]

    def observe(self, weight: str, x: F32, matrix: int = 0, n_matrices: int = 1) -> None:
        """Note that x [rows, columns] is multiplied by a weight, or by the matrix of one of its experts."""
        if self.options.collect_importance:
            self._seen.append((weight, matrix, n_matrices, np.square(x, dtype=np.float64).sum(axis=0), len(x)))

    def importance(self) -> ImportanceSums:
        if not self.options.collect_importance:
            return super().importance()
        return {name: (sums.copy(), counts.copy()) for name, (sums, counts) in self._sums.items()}

    def _commit(self) -> None:
        """Add the importance of a successful step to the totals."""
        for weight, matrix, n, squares, rows in self._seen:
            if weight not in self._sums:
                self._sums[weight] = np.zeros((n, len(squares))), np.zeros(n, np.int64)
            sums, counts = self._sums[weight]
            sums[matrix] += squares
            counts[matrix] += rows

    def interrupt(self) -> None:
        self._interrupted = True

    def check_interrupt(self) -> None:
        """Called between ops and between slabs of weights."""
        if self._interrupted:
            self._interrupted = False
            raise KeyboardInterrupt

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
        if self._closed:
            raise ClosedError("the executable was closed")
        return [cache[page].reshape(-1).view(np.uint8) for cache in (*self.keys, *self.values)]

    def _states(self, slot: int) -> list[NDArray[np.uint8]]:
        """A slot's memory in each array of states."""
        if self._closed:
            raise ClosedError("the executable was closed")
        return [states[slot].reshape(-1).view(np.uint8) for states in self.slots]

    def memory(self) -> dict[str, int]:
        kv = sum(cache.nbytes for cache in (*self.keys, *self.values, *self.slots))
        return {"weights": self.weights.bytes_kept, "kv": kv, "work": 0}

    def replace(self, weights: Mapping[str, TensorInfo]) -> None:
        self.weights.replace(weights)

    def close(self) -> None:
        self._closed = True
        self.weights.clear()
        self.keys, self.values, self.slots = [], [], []
        self._state.clear()

    def sequences(self, value: Value, batch: Batch) -> NDArray[np.int32]:
        """The sequence of each row of a value, ascending."""
        of_token = batch.seqs[: batch.n_tokens]
        return of_token[batch.rows[: batch.n_rows]] if value.id in self._of_output_rows else of_token

    def matmul(self, x: F32, seqs: NDArray[np.int32], weight: str, start: int, stop: int) -> F32:
        """x [rows, columns] @ rows start .. stop - 1 of a weight, transposed → [rows, stop - start].

        `seqs` [rows]: the sequence of each row of x, ascending. Each sequence's rows are multiplied separately: BLAS
        rounds by the number of rows, and a token's result must not depend on the rest of the batch.
        """
        out = np.empty((len(x), stop - start), np.float32)
        bounds = [0, *(np.flatnonzero(np.diff(seqs)) + 1).tolist(), len(x)]
        for columns, slab in self.weights.slabs(weight, start, stop):
            self.check_interrupt()
            for first, last in pairwise(bounds):
                out[first:last, columns] = x[first:last] @ slab.T
        return out
