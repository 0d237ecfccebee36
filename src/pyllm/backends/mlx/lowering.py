"""A program for mlx: how its weights are kept, and its ops as mlx expressions over what a step brings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from pyllm import program as p
from pyllm.backends.base import Batch, check_replacement, kv_bytes
from pyllm.backends.mlx import attention as att
from pyllm.backends.mlx import ops, packing
from pyllm.backends.mlx.matrices import Matrix, matrix
from pyllm.backends.mlx.memory import work_bytes
from pyllm.config import ExecutionOptions
from pyllm.errors import BackendError
from pyllm.gguf.tensor import TensorInfo
from pyllm.jit.memory import release
from pyllm.quant import formats

Inputs = dict[str, mx.array]
Reads = dict[int, tuple[att.Group, ...]]
"""What attention reads in a step, by window."""

_BOUND = 1024.0
"""Numbers up to this may enter products of halves as they are."""


class Lowering:
    """What a program takes. Nothing is on the device before `pack`."""

    def __init__(
        self, program: p.Program, weights: Mapping[str, TensorInfo], options: ExecutionOptions, half: bool
    ) -> None:
        """`half`: products, and attention over a cache of halves, are of float16. Raises BackendError."""
        if unknown := {type(op).__name__ for op in program.ops if type(op) not in RULES}:
            raise BackendError(f"the mlx backend has no op {', '.join(sorted(unknown))}")
        if missing := [name for name in program.weights() if name not in weights]:
            raise BackendError(f"the program needs tensors that were not given: {', '.join(missing[:8])}")
        self.program, self.options, self.half = program, options, half
        self.tensors = {name: weights[name] for name in program.weights()}
        matrices = [name for op in program.ops for name in _matrix_names(op)]
        self.tables = {op.table for op in program.ops if isinstance(op, p.Embed)}
        self.plans = {name: packing.plan(self.tensors[name], half) for name in dict.fromkeys(matrices)}
        self.vector_names = [n for n in self.tensors if n not in self.plans and n not in self.tables]
        self.windows = sorted({op.window for op in program.ops if isinstance(op, p.Attention)})
        self.matrices: dict[str, Matrix] = {}
        self.vectors: dict[str, mx.array] = {}
        self.periods: dict[tuple[float, ...], mx.array] = {}
        self.bounded: set[int] = set()
        """Values that are known to be small."""

    def sizes(self) -> dict[str, int]:
        """Bytes on the device, by purpose."""
        vectors = sum(4 * self.tensors[name].n_elements for name in self.vector_names)
        weights = vectors + sum(planned.n_bytes for planned in self.plans.values())
        work = work_bytes(self.program, self.plans, self.options, self.half)
        return {"weights": weights, "kv": kv_bytes(self.program, self.options), "work": work}

    def pack(self) -> None:
        """Put the weights on the device, one after the other, and give the file's pages back."""
        progress = self.options.progress
        total, done = sum(planned.n_bytes for planned in self.plans.values()) or 1, 0
        for name in self.vector_names:
            self.vectors[name] = mx.array(self.decode(name))
        for name, planned in self.plans.items():
            if progress:
                progress("packing weights", done / total)
            self.matrices[name] = self._matrix(self.tensors[name], planned)
            done += planned.n_bytes
        for op in self.program.ops:
            if isinstance(op, p.Rope) and op.inv_freq not in self.periods:
                self.periods[op.inv_freq] = mx.array(1 / np.array(op.inv_freq, np.float32))
            if isinstance(op, p.RMSNorm):
                largest = 1.0 if op.weight is None else float(mx.max(mx.abs(self.vectors[op.weight])))
                if largest * sqrt(op.group) <= _BOUND:
                    self.bounded.add(op.out.id)
        mx.eval(*self.vectors.values(), *self.periods.values())
        if progress:
            progress("packing weights", 1.0)

    def replace(self, tensors: Mapping[str, TensorInfo]) -> None:
        """Other values. Raises BackendError as `Executable.replace` says."""
        for name, tensor in tensors.items():
            replaceable = name in self.plans or name in self.tables
            check_replacement(self.tensors[name] if replaceable else None, tensor)
        packed = {n: self._matrix(t, self.plans[n]) for n, t in tensors.items() if n in self.plans}
        self.matrices.update(packed)
        self.tensors.update(tensors)

    def close(self) -> None:
        self.matrices, self.vectors, self.periods, self.tensors = {}, {}, {}, {}

    def decode(self, name: str) -> NDArray[np.float32]:
        tensor = self.tensors[name]
        return formats.get(tensor.format).decode(tensor.data).reshape(tensor.shape)

    def rows(self, op: p.Embed, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        """Rows of a table, decoded from the file: [len(tokens), width]."""
        tensor = self.tensors[op.table]
        data = tensor.data.reshape(tensor.shape[0], -1)[tokens]
        return formats.get(tensor.format).decode(data) * np.float32(op.scale)

    def inputs(self, batch: Batch, rounded: bool) -> tuple[Reads, dict[str, NDArray[Any]]]:
        """What a step brings, by name: rows of tables, positions, slots, rows, and what attention reads."""
        n = batch.n_tokens
        arrays: dict[str, NDArray[Any]] = {
            "positions": batch.positions[:n], "slots": att.slots_of(batch), "rows": batch.rows[: batch.n_rows]
        }  # fmt: skip
        for op in self.program.ops:
            if isinstance(op, p.Embed):
                arrays[f"table.{op.out.id}"] = self.rows(op, batch.tokens[:n])
        n_slots = self.options.n_pages * self.options.page_size
        reads: Reads = {}
        for window in self.windows:
            reads[window], more = att.plan_reads(batch, window, n_slots, rounded)
            arrays |= more
        return reads, arrays

    def _matrix(self, tensor: TensorInfo, planned: packing.Plan) -> Matrix:
        actual, arrays = packing.pack(planned, tensor.data, self.options.n_threads)
        release(tensor.data)
        return matrix(actual, arrays, self.half)


@dataclass
class Step:
    """A step's expressions as they are built. Caches are updated: their arrays stand for what is stored then."""

    lowering: Lowering
    inputs: Inputs
    reads: Reads
    n_rows: int
    caches: dict[int, tuple[mx.array, mx.array]]
    """Keys and values by number of the cache."""
    values: dict[int, mx.array] = field(default_factory=dict)
    _masks: dict[int, list[mx.array | str]] = field(default_factory=dict)

    def __getitem__(self, value: p.Value) -> mx.array:
        return self.values[value.id]

    def do(self, op: p.Op, by_row: bool) -> None:
        """One op. `by_row`: its value has a row per wanted row, of which there may be none; mlx's products want one."""
        empty = by_row and self.n_rows == 0
        self.values[op.out.id] = mx.zeros((0, op.out.width)) if empty else RULES[type(op)](self, op)

    def vector(self, name: str | None) -> mx.array | None:
        return None if name is None else self.lowering.vectors[name]

    def masks(self, window: int) -> list[mx.array | str]:
        if window not in self._masks:
            self._masks[window] = att.masks(window, self.reads[window], self.inputs, self.inputs["positions"])
        return self._masks[window]


def _linear(s: Step, op: p.Linear) -> mx.array:
    out = s.lowering.matrices[op.weight].product(s[op.x], op.x.id in s.lowering.bounded)
    bias = s.vector(op.bias)
    return out if bias is None else out + bias


def _rope(s: Step, op: p.Rope) -> mx.array:
    periods = s.lowering.periods[op.inv_freq]
    return ops.rope(s[op.x], s.inputs["positions"], op.head_dim, periods, op.mscale, op.interleaved)


def _attention(s: Step, op: p.Attention) -> mx.array:
    keys, values = s.caches[op.cache]
    q = s[op.q]
    att.store(keys, s.inputs["slots"], s[op.k])
    att.store(values, s.inputs["slots"], s[op.v])
    dtype = mx.float16 if s.lowering.half and keys.dtype == mx.float16 else mx.float32
    sinks, out = s.vector(op.sinks), []
    for i, (group, mask) in enumerate(zip(s.reads[op.window], s.masks(op.window), strict=True)):
        slots = s.inputs.get(f"slots.{op.window}.{i}")
        k, v = (att.read(cache, group, slots).astype(dtype) for cache in (keys, values))
        rows = q[group.first : group.first + group.n_seqs * group.n_tokens]
        rows = rows.reshape(group.n_seqs, group.n_tokens, -1).astype(dtype)
        out.append(att.attention(op, rows, k, v, mask, sinks).astype(mx.float32))
    return out[0] if len(out) == 1 else mx.concatenate(out)


def _experts(s: Step, op: p.MixtureOfExperts) -> mx.array:
    chosen, weights = ops.route(
        s[op.router], op.n_used, op.gating, op.normalize, op.weight_scale, s.vector(op.choice_bias)
    )

    def project(x: mx.array, part: str) -> mx.array:
        out = s.lowering.matrices[getattr(op, part)].experts(x, chosen)
        scale, bias = s.vector(getattr(op, f"{part}_scale")), s.vector(getattr(op, f"{part}_bias"))
        if scale is not None:
            out = out * scale[chosen][..., None]
        return out if bias is None else out + bias[chosen]

    x = s[op.x][:, None]
    inner = ops.gated_activation(project(x, "gate"), project(x, "up"), op.act)
    return (project(inner, "down") * weights[..., None]).sum(axis=1)


def _matrix_names(op: p.Op) -> list[str]:
    if isinstance(op, p.MixtureOfExperts):
        return [op.gate, op.up, op.down]
    return [op.weight] if isinstance(op, p.Linear) else []


RULES: dict[type[p.Op], Callable[[Step, Any], mx.array]] = {
    p.Embed: lambda s, op: s.inputs[f"table.{op.out.id}"],
    p.RMSNorm: lambda s, op: ops.rms_norm(s[op.x], s.vector(op.weight), op.eps, op.group),
    p.Linear: _linear,
    p.Rope: _rope,
    p.Attention: _attention,
    p.MixtureOfExperts: _experts,
    p.Add: lambda s, op: s[op.a] + s[op.b],
    p.Scale: lambda s, op: s[op.x] * op.factor,
    p.Slice: lambda s, op: s[op.x][:, op.start : op.start + op.out.width],
    p.GatedActivation: lambda s, op: ops.gated_activation(s[op.gate], s[op.up], op.act),
    p.SelectRows: lambda s, op: s[op.x][s.inputs["rows"]],
    p.SoftCap: lambda s, op: ops.soft_cap(s[op.x], op.cap),
}
