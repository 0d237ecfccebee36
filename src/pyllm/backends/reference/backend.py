"""The reference backend: walks the program op by op, keeps KV in pages, decodes weights at use."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm import program as p
from pyllm.backends.base import Backend, Batch, Crossing, Executable, HostCrossing, ImportanceSums, Probe
from pyllm.backends.reference import ops
from pyllm.backends.reference.weights import KEEP_BYTES, Weights
from pyllm.config import ExecutionOptions
from pyllm.errors import BackendError, ClosedError, OutOfMemoryError
from pyllm.gguf.tensor import TensorInfo

F32 = NDArray[np.float32]

_QUERIES = 128
"""Queries of one sequence whose scores are held at a time."""


class ReferenceBackend(Backend):
    """numpy, on any machine. Slow, plain and exact to float32."""

    name = "reference"

    def probe(self) -> Probe:
        return Probe(self.name, True, device=platform.processor() or platform.machine())

    def compile(
        self, program: p.Program, weights: Mapping[str, TensorInfo], options: ExecutionOptions
    ) -> ReferenceExecutable:
        if unknown := {type(op).__name__ for op in program.ops if type(op) not in _RULES}:
            raise BackendError(f"the reference backend has no op {', '.join(sorted(unknown))}")
        self.check_kv_dtype(program, options)
        return ReferenceExecutable(program, weights, options)

    def memory_needed(
        self, program: p.Program, weights: Mapping[str, TensorInfo], options: ExecutionOptions
    ) -> dict[str, int]:
        """Weights: what it comes to keep of them, decoded."""
        self.check_kv_dtype(program, options)
        sizes = super().memory_needed(program, weights, options)
        decoded = sum(4 * weights[name].n_elements for name in program.weights())
        return {**sizes, "weights": min(decoded, KEEP_BYTES)}


class ReferenceExecutable(Executable):
    """`_state` holds the values of the step that runs; KV caches are [n_pages, page_size, n_kv_heads, dim]."""

    def __init__(self, program: p.Program, weights: Mapping[str, TensorInfo], options: ExecutionOptions) -> None:
        self.program, self.options, self._stages = program, options, program.stages
        self.weights = Weights(weights, program.weights())
        dtype = np.float16 if options.kv_dtype == "f16" else np.float32
        pages = (options.n_pages, options.page_size)
        try:
            self.keys = [np.zeros((*pages, spec.n_kv_heads, spec.head_dim), dtype) for spec in program.kv]
            self.values = [np.zeros((*pages, spec.n_kv_heads, spec.v_head_dim), dtype) for spec in program.kv]
        except MemoryError as error:
            positions = options.n_pages * options.page_size
            raise OutOfMemoryError(f"a cache of {positions} positions does not fit; a smaller context would") from error
        self._last_use = _last_uses(program)
        self._state: State = {}
        self._sums: ImportanceSums = {}
        self._seen: list[tuple[str, int, int, NDArray[np.float64], int]] = []
        self._interrupted = False
        self._closed = False

    def run_stage(
        self, stage: int, batch: Batch, given: Sequence[Crossing], wanted: Sequence[p.Value]
    ) -> list[Crossing]:
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
            state[op.out.id] = _RULES[type(op)](self, op, batch, state)
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
        """x [rows, columns] is multiplied by a weight, or by the matrix of one of its experts."""
        if self.options.collect_importance:
            self._seen.append((weight, matrix, n_matrices, np.square(x, dtype=np.float64).sum(axis=0), len(x)))

    def importance(self) -> ImportanceSums:
        if not self.options.collect_importance:
            return super().importance()
        return {name: (sums.copy(), counts.copy()) for name, (sums, counts) in self._sums.items()}

    def _commit(self) -> None:
        """The step has succeeded: what it showed counts."""
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

    def memory(self) -> dict[str, int]:
        kv = sum(cache.nbytes for cache in (*self.keys, *self.values))
        return {"weights": self.weights.bytes_kept, "kv": kv, "work": 0}

    def replace(self, weights: Mapping[str, TensorInfo]) -> None:
        self.weights.replace(weights)

    def close(self) -> None:
        self._closed = True
        self.weights.clear()
        self.keys, self.values = [], []
        self._state.clear()

    def matmul(self, x: F32, weight: str, start: int, stop: int) -> F32:
        """x [tokens, columns] @ rows start .. stop - 1 of a weight, transposed → [tokens, stop - start]."""
        out = np.empty((len(x), stop - start), np.float32)
        for rows, slab in self.weights.slabs(weight, start, stop):
            self.check_interrupt()
            out[:, rows] = ops.linear(x, slab)
        return out


State = dict[int, F32]
Rule = Callable[[ReferenceExecutable, Any, Batch, State], F32]


def _last_uses(program: p.Program) -> list[list[int]]:
    """For each op the values that it is the last to read."""
    seen: set[int] = set()
    kept = []
    for op in reversed(program.ops):
        ids = {v.id for v in p.inputs(op)} - seen
        seen |= ids
        kept.append(sorted(ids))
    return kept[::-1]


def _embed(exe: ReferenceExecutable, op: p.Embed, batch: Batch, state: State) -> F32:
    return exe.weights.rows(op.table, batch.tokens[: batch.n_tokens]) * op.scale


def _rms_norm(exe: ReferenceExecutable, op: p.RMSNorm, batch: Batch, state: State) -> F32:
    return ops.rms_norm(state[op.x.id], exe.weights.whole(op.weight), op.eps, op.group)


def _linear(exe: ReferenceExecutable, op: p.Linear, batch: Batch, state: State) -> F32:
    exe.observe(op.weight, state[op.x.id])
    out = exe.matmul(state[op.x.id], op.weight, 0, op.out.width)
    bias = exe.weights.whole(op.bias)
    return out if bias is None else out + bias


def _rope(exe: ReferenceExecutable, op: p.Rope, batch: Batch, state: State) -> F32:
    positions = batch.positions[: batch.n_tokens]
    return ops.rope(state[op.x.id], positions, op.head_dim, op.inv_freq, op.mscale, op.interleaved)


def _attention(exe: ReferenceExecutable, op: p.Attention, batch: Batch, state: State) -> F32:
    q, k, v = (state[x.id] for x in (op.q, op.k, op.v))
    keys, values = exe.keys[op.cache], exe.values[op.cache]
    sinks = exe.weights.whole(op.sinks)
    out = np.empty((batch.n_tokens, op.out.width), np.float32)
    for seq, (first, n) in enumerate(batch.spans[: batch.n_seqs]):
        pages, position = batch.page_tables[seq], int(batch.positions[first])
        ops.store(k[first : first + n], keys, pages, position)
        ops.store(v[first : first + n], values, pages, position)
        for i in range(0, n, _QUERIES):
            exe.check_interrupt()
            m = min(_QUERIES, n - i)
            at = position + i
            start = max(0, at - op.window + 1) if op.window else 0
            rows = slice(first + i, first + i + m)
            out[rows] = ops.attention(
                q[rows].reshape(m, op.n_heads, op.head_dim),
                ops.load(keys, pages, start, at + m),
                ops.load(values, pages, start, at + m),
                at,
                start,
                scale=op.scale,
                window=op.window,
                softcap=op.softcap,
                sinks=sinks,
            )
    return out


def _mixture_of_experts(exe: ReferenceExecutable, op: p.MixtureOfExperts, batch: Batch, state: State) -> F32:
    whole = exe.weights.whole
    chosen, weights = ops.route(
        state[op.router.id],
        op.n_used,
        gating=op.gating,
        normalize=op.normalize,
        weight_scale=op.weight_scale,
        choice_bias=whole(op.choice_bias),
    )
    x = state[op.x.id]

    def project(e: int, rows: F32, part: str, n: int) -> F32:
        exe.observe(getattr(op, part), rows, e, op.n_experts)
        out = exe.matmul(rows, getattr(op, part), e * n, (e + 1) * n)
        scale, bias = whole(getattr(op, f"{part}_scale")), whole(getattr(op, f"{part}_bias"))
        if scale is not None:
            out = out * scale[e]
        return out if bias is None else out + bias[e]

    def expert(e: int, rows: F32) -> F32:
        gated = ops.gated_activation(project(e, rows, "gate", op.n_ff), project(e, rows, "up", op.n_ff), op.act)
        return project(e, gated, "down", op.x.width)

    return ops.mixture_of_experts(x, chosen, weights, expert)


_RULES: dict[type[p.Op], Rule] = {
    p.Embed: _embed,
    p.RMSNorm: _rms_norm,
    p.Linear: _linear,
    p.Rope: _rope,
    p.Attention: _attention,
    p.MixtureOfExperts: _mixture_of_experts,
    p.Add: lambda exe, op, batch, state: state[op.a.id] + state[op.b.id],
    p.Scale: lambda exe, op, batch, state: state[op.x.id] * op.factor,
    p.Slice: lambda exe, op, batch, state: np.ascontiguousarray(state[op.x.id][:, op.start : op.start + op.out.width]),
    p.GatedActivation: lambda exe, op, batch, state: ops.gated_activation(state[op.gate.id], state[op.up.id], op.act),
    p.SelectRows: lambda exe, op, batch, state: state[op.x.id][batch.rows[: batch.n_rows]],
    p.SoftCap: lambda exe, op, batch, state: ops.soft_cap(state[op.x.id], op.cap),
}
