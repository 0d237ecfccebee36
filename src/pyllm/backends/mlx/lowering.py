"""A program for mlx: its weights' layouts, and its ops as mlx expressions over a step's inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from pyllm.backends.base import Batch, check_replacement, kv_bytes
from pyllm.backends.mlx import attention as att
from pyllm.backends.mlx import packing
from pyllm.backends.mlx.matrices import Matrix, matrix
from pyllm.backends.mlx.memory import work_bytes
from pyllm.backends.mlx.recurrent import Group
from pyllm.backends.mlx.rules import rule
from pyllm.config import ExecutionOptions
from pyllm.errors import BackendError
from pyllm.gguf.tensor import TensorInfo
from pyllm.jit.memory import release
from pyllm.program import Op, Program, Value
from pyllm.program.ops.attention import Attention, Sight
from pyllm.program.ops.embed import Embed
from pyllm.program.ops.experts import MixtureOfExperts
from pyllm.program.ops.linear import Linear
from pyllm.program.ops.norm import RMSNorm
from pyllm.program.ops.rope import Rope
from pyllm.quant import formats

Inputs = dict[str, mx.array]
Reads = dict[Sight, tuple[att.Group, ...]]
"""Reads of attention in a step, by what tokens see."""

_BOUND = 1024.0
"""Values up to this magnitude may enter float16 products unscaled."""


class Lowering:
    """Weights and memory of a program. Nothing is on the device before `pack`."""

    def __init__(
        self, program: Program, weights: Mapping[str, TensorInfo], options: ExecutionOptions, half: bool
    ) -> None:
        """`half`: products, and attention over a cache of halves, are of float16. Raises BackendError."""
        rule.check(program)
        if missing := [name for name in program.weights() if name not in weights]:
            raise BackendError(f"the program needs tensors that were not given: {', '.join(missing[:8])}")
        self.program, self.options, self.half = program, options, half
        self.tensors = {name: weights[name] for name in program.weights()}
        matrices = [name for op in program.ops for name in _matrix_names(op)]
        self.tables = {op.table for op in program.ops if isinstance(op, Embed)}
        self.plans = {name: packing.plan(self.tensors[name], half) for name in dict.fromkeys(matrices)}
        self.vector_names = [n for n in self.tensors if n not in self.plans and n not in self.tables]
        self.sights = list(dict.fromkeys(op.sight for op in program.ops if isinstance(op, Attention)))
        self.matrices: dict[str, Matrix] = {}
        self.vectors: dict[str, mx.array] = {}
        self.periods: dict[tuple[float, ...], mx.array] = {}
        self.bounded: set[int] = set()
        """Ids of values known to be within `_BOUND`."""

    def sizes(self) -> dict[str, int]:
        """Bytes on the device, by purpose."""
        vectors = sum(4 * self.tensors[name].n_elements for name in self.vector_names)
        weights = vectors + sum(planned.n_bytes for planned in self.plans.values())
        work = work_bytes(self.program, self.plans, self.options, self.half)
        return {"weights": weights, "kv": kv_bytes(self.program, self.options), "work": work}

    def pack(self) -> None:
        """Pack the weights onto the device, tensor by tensor, and release the file's pages."""
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
            if isinstance(op, Rope) and op.inv_freq not in self.periods:
                self.periods[op.inv_freq] = mx.array(1 / np.array(op.inv_freq, np.float32))
            if isinstance(op, RMSNorm) and op.bias is None:
                largest = 1.0 if op.weight is None else float(mx.max(mx.abs(self.vectors[op.weight])))
                if largest * sqrt(op.group) <= _BOUND:
                    self.bounded.add(op.out.id)
        mx.eval(*self.vectors.values(), *self.periods.values())
        if progress:
            progress("packing weights", 1.0)

    def replace(self, tensors: Mapping[str, TensorInfo]) -> None:
        """Replace values. Raises BackendError as `Executable.replace` says."""
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

    def rows(self, op: Embed, batch: Batch) -> NDArray[np.float32]:
        """Rows of a table, decoded from the file: [tokens, width]."""
        tensor = self.tensors[op.table]
        which = (batch.positions if op.of_positions else batch.tokens)[: batch.n_tokens]
        data = tensor.data.reshape(tensor.shape[0], -1)[which]
        return formats.get(tensor.format).decode(data) * np.float32(op.scale)

    def inputs(self, batch: Batch, rounded: bool) -> tuple[Reads, dict[str, NDArray[Any]]]:
        """Inputs of a step, by name: rows of tables, positions, slots, output rows, and the reads of attention."""
        n = batch.n_tokens
        arrays: dict[str, NDArray[Any]] = {
            "positions": batch.positions[:n], "slots": att.slots_of(batch), "rows": batch.rows[: batch.n_rows]
        }  # fmt: skip
        for op in self.program.ops:
            if isinstance(op, Embed):
                arrays[f"table.{op.out.id}"] = self.rows(op, batch)
        n_slots = self.options.n_pages * self.options.page_size
        reads: Reads = {}
        for sight in self.sights:
            reads[sight], more = att.plan_reads(batch, sight, n_slots, rounded)
            arrays |= more
        return reads, arrays

    def _matrix(self, tensor: TensorInfo, planned: packing.Plan) -> Matrix:
        actual, arrays = packing.pack(planned, tensor.data, self.options.n_threads)
        release(tensor.data)
        return matrix(actual, arrays, self.half)


@dataclass
class Step:
    """A step's expressions under construction. `caches` hold the arrays after the stores so far, `saved` the new states
    of recurrent ops."""

    lowering: Lowering
    inputs: Inputs
    reads: Reads
    groups: tuple[Group, ...]
    """Sequences, as recurrent ops compute them."""
    n_rows: int
    caches: dict[int, tuple[mx.array, mx.array]]
    """Keys and values by number of the cache."""
    states: dict[int, list[mx.array]]
    """By number of the recurrent state: that before each sequence."""
    values: dict[int, mx.array] = field(default_factory=dict)
    saved: dict[int, list[mx.array]] = field(default_factory=dict)
    """By number of the recurrent state: that of each save."""
    _masks: dict[Sight, list[mx.array | str]] = field(default_factory=dict)

    def __getitem__(self, value: Value) -> mx.array:
        return self.values[value.id]

    def do(self, op: Op, of_output_rows: bool) -> None:
        """One op. `of_output_rows`: its value has a row per output row; mlx's products do not take zero rows."""
        empty = of_output_rows and self.n_rows == 0
        self.values[op.out.id] = mx.zeros((0, op.out.width)) if empty else rule.of(op)(self, op)

    def vector(self, name: str | None) -> mx.array | None:
        return None if name is None else self.lowering.vectors[name]

    def masks(self, sight: Sight) -> list[mx.array | str]:
        if sight not in self._masks:
            self._masks[sight] = att.masks(sight, self.reads[sight], self.inputs, self.inputs["positions"])
        return self._masks[sight]


def _matrix_names(op: Op) -> list[str]:
    if isinstance(op, MixtureOfExperts):
        return [*op.readers, op.down]
    return [op.weight] if isinstance(op, Linear) else []
