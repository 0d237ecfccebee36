"""A program's weights in the kernels' layouts: requested, placed in one block of memory, packed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pyllm.backends.base import check_replacement
from pyllm.backends.cpu import linear
from pyllm.backends.cpu.layouts import PANEL
from pyllm.backends.cpu.linear import LinearPlan
from pyllm.backends.cpu.table import LINE
from pyllm.backends.plan.memory import Buffer
from pyllm.config import Progress
from pyllm.errors import BackendError
from pyllm.gguf.tensor import TensorInfo
from pyllm.jit.memory import Memory, at, release
from pyllm.quant import formats
from pyllm.records import dataclass

F32 = NDArray[np.float32]

_Key = tuple[bool, tuple[str, ...]]
"""Whether a stack of matrices is of floats, and the tensors' names."""

_PIECE = 16 << 20
"""Bytes of the file packed at a time, to bound the file's pages in memory beside the packed weights."""


@dataclass(frozen=True, slots=True)
class _Matrix:
    """Matrices of one format, stacked by rows in one plan, for each expert."""

    plan: LinearPlan
    names: tuple[str, ...]
    n_matrices: int
    place: Buffer


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in the file's format."""

    weights: Weights
    name: str

    @property
    def address(self) -> int:
        return int(self.weights[self.name].data.ctypes.data)


class Weights:
    """Requested weights; each is stored once. Addresses are known after `allocate`, contents after `pack`."""

    def __init__(self, tensors: Mapping[str, TensorInfo], packed: Weights | None = None) -> None:
        """`packed`: weights of another program, whose matrices are used where they are the same."""
        self.tensors = tensors
        self._packed = packed
        self._matrices: dict[_Key, _Matrix] = {}
        self._arrays: dict[tuple[object, ...], tuple[Buffer, F32]] = {}
        self._tables: set[str] = set()
        self.memory: Memory | None = None

    def __getitem__(self, name: str) -> TensorInfo:
        try:
            return self.tensors[name]
        except KeyError:
            raise BackendError(f"the program needs tensor {name}, which was not given") from None

    @property
    def n_bytes(self) -> int:
        return sum(-(-b.n_bytes // LINE) * LINE for b in self._places())

    @property
    def plans(self) -> list[LinearPlan]:
        return [m.plan for m in self._matrices.values()]

    def matrix(self, names: Sequence[str], *, floats: bool = False) -> tuple[LinearPlan, Buffer]:
        """One matrix product for tensors [(experts,) rows, columns] of one format, stacked by rows; of `floats`, if so.

        All but the last must have a multiple of 16 rows.
        """
        key = floats, tuple(names)
        if self._packed is not None and self._packed.has(key, self.tensors):
            return self._packed.matrix(key[1], floats=floats)
        if key not in self._matrices:
            first = self[names[0]]
            columns, rows = first.shape[-1], sum(self[n].shape[-2] for n in names)
            n_matrices = first.n_elements // (first.shape[-2] * columns)
            plan = linear.plan(first.format, rows, columns, floats=floats)
            self._matrices[key] = _Matrix(plan, key[1], n_matrices, Buffer(plan.n_bytes * n_matrices, outside=True))
        m = self._matrices[key]
        return m.plan, m.place

    def has(self, key: _Key, tensors: Mapping[str, TensorInfo]) -> bool:
        """Whether a stack of these matrices is packed, and of the same bytes of a file."""
        return key in self._matrices and all(_is_same(self[n], tensors[n]) for n in key[1])

    def table(self, name: str) -> TensorInfo:
        """A table read in the file's format."""
        self._tables.add(name)
        return self[name]

    def stored(self, name: str) -> Stored:
        """Address of a table."""
        return Stored(self, name)

    def vector(self, parts: Sequence[tuple[str | None, int]], n: int = 1) -> tuple[Buffer, int]:
        """Small tensors ([(n,) width], None: zeros) side by side as float32, zero-padded to a multiple of 16 columns.

        Returns the address, and the bytes of one of the n rows.
        """
        width = -(-sum(w for _, w in parts) // 16) * 16
        rows = np.zeros((n, width), np.float32)
        start = 0
        for name, w in parts:
            if name is not None:
                rows[:, start : start + w] = self.decode(name).reshape(n, w)
            start += w
        return self._array((*parts, n), rows), 4 * width

    def columns(self, name: str) -> tuple[Buffer, int]:
        """A small matrix [n, columns] column by column, as float32 [columns, n], zero-padded to a multiple of 16.

        Returns the address, and the bytes of a column.
        """
        n, columns = self[name].shape
        out = np.zeros((columns, -(-n // 16) * 16), np.float32)
        out[:, :n] = self.decode(name).reshape(n, columns).T
        return self._array((name, "columns"), out), out.strides[0]

    def edged(self, name: str, n: int) -> tuple[Buffer, int]:
        """A small matrix as float32 whose outer columns are repeated n times on their sides. Returns the address, and
        the bytes of a row."""
        values = self.decode(name).reshape(self[name].shape)
        out = np.pad(values, ((0, 0), (n, n)), mode="edge")
        return self._array((name, "edged", n), out), out.strides[0]

    def by_group(self, name: str | None, group: int) -> tuple[Buffer | None, int]:
        """A norm's vector [group] or [width]: its address, and columns from one group's numbers to the next's (0:
        shared)."""
        if name is None:
            return None, 0
        columns = self[name].n_elements
        return self.vector([(name, columns)])[0], group if columns > group else 0

    def constant(self, values: Sequence[float]) -> Buffer:
        """Constants of the program as float32, zero-padded to a multiple of 16."""
        out = np.zeros(-(-len(values) // 16) * 16, np.float32)
        out[: len(values)] = values
        return self._array(("", *values), out)

    def decode(self, name: str) -> F32:
        tensor = self[name]
        return formats.get(tensor.format).decode(tensor.data)

    def allocate(self) -> None:
        self.memory = Memory(self.n_bytes, "weights")
        address = self.memory.address
        for b in self._places():
            b.address = address
            address += -(-b.n_bytes // LINE) * LINE

    def pack(self, run_parallel: linear.RunParallel, progress: Progress | None) -> None:
        """Pack tensor by tensor, releasing the file's pages on the way."""
        for place, values in self._arrays.values():
            at(place.address, values.shape, np.float32)[...] = values
        total, done = sum(m.place.n_bytes for m in self._matrices.values()), 0
        for m in self._matrices.values():
            if progress:
                progress("packing weights", done / total)
            _pack(m, [self[n] for n in m.names], run_parallel)
            done += m.place.n_bytes
        if progress:
            progress("packing weights", 1.0)

    def replace(self, tensors: Mapping[str, TensorInfo], run_parallel: linear.RunParallel) -> None:
        """Replace values of matrices and tables. Raises BackendError as `Executable.replace` says."""
        matrices = [m for m in self._matrices.values() if not tensors.keys().isdisjoint(m.names)]
        replaceable = self._tables.union(*(m.names for m in matrices))
        for name, tensor in tensors.items():
            check_replacement(self[name] if name in replaceable else None, tensor)
        self.tensors = {**self.tensors, **tensors}
        for m in matrices:
            _pack(m, [self[n] for n in m.names], run_parallel)

    def close(self) -> None:
        if self.memory:
            self.memory.close()
        self.tensors = {}
        self._packed = None

    def _array(self, key: tuple[object, ...], values: F32) -> Buffer:
        if key not in self._arrays:
            self._arrays[key] = Buffer(values.nbytes, outside=True), values
        return self._arrays[key][0]

    def _places(self) -> list[Buffer]:
        return [m.place for m in self._matrices.values()] + [b for b, _ in self._arrays.values()]


def _is_same(a: TensorInfo, b: TensorInfo) -> bool:
    """Whether two tensors are the same bytes in memory, read alike."""
    place = a.data.ctypes.data == b.data.ctypes.data and a.data.strides == b.data.strides
    return place and (a.shape, a.format) == (b.shape, b.format)


def _pack(m: _Matrix, tensors: list[TensorInfo], run_parallel: linear.RunParallel) -> None:
    """Pack piece by piece, releasing the file's pages."""
    start = 0  # rows done
    for tensor in tensors:
        plan = replace(m.plan, rows=tensor.shape[-2])
        panel_bytes = plan.layout.panel_bytes(plan.columns)
        out = m.place.address + start // PANEL * panel_bytes
        data = tensor.data.reshape(m.n_matrices, plan.rows, -1)
        start += plan.rows
        n = max(1, _PIECE // data[0].nbytes) if len(tensors) == 1 else 1  # stacks of one tensor lie without gaps
        rows = max(1, _PIECE // (PANEL * data[0, 0].nbytes)) * PANEL if n == 1 else plan.rows
        for i in range(0, m.n_matrices, n):
            for r in range(0, plan.rows, rows):
                part = data[i : i + n, r : r + rows]
                one = TensorInfo(tensor.name, (*part.shape[:2], plan.columns), tensor.format, part.reshape(-1))
                piece = replace(plan, rows=part.shape[1])
                linear.pack(piece, one, out + i * m.plan.n_bytes + r // PANEL * panel_bytes, run_parallel)
                release(one.data)
