"""A program's weights on a device: requested by the lowering, placed in one block of memory, packed there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pyllm.backends.base import check_replacement
from pyllm.backends.cuda import linear, matrices
from pyllm.backends.cuda.launch import ALIGNMENT, round_up
from pyllm.backends.plan.memory import Buffer
from pyllm.config import Progress
from pyllm.errors import BackendError
from pyllm.gguf.tensor import TensorInfo
from pyllm.jit.memory import release
from pyllm.quant import formats
from pyllm.records import dataclass

if TYPE_CHECKING:
    from pyllm.backends.cuda.launcher import Launcher
    from pyllm.backends.cuda.matrices import MatrixPlan

F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Matrix:
    """Tensors of one format, stacked by rows, for each expert."""

    plan: MatrixPlan
    names: tuple[str, ...]
    place: Buffer


class Weights:
    """Requested weights; each is stored once. Addresses are known after `place`, contents after `load`."""

    def __init__(self, tensors: Mapping[str, TensorInfo]) -> None:
        self.tensors = tensors
        self._matrices: dict[tuple[str, ...], _Matrix] = {}
        self._tables: dict[str, Buffer] = {}
        self._arrays: dict[tuple[object, ...], tuple[Buffer, F32]] = {}

    def __getitem__(self, name: str) -> TensorInfo:
        try:
            return self.tensors[name]
        except KeyError:
            raise BackendError(f"the program needs tensor {name}, which was not given") from None

    @property
    def n_bytes(self) -> int:
        return sum(round_up(b.n_bytes, ALIGNMENT) for b in self._places())

    def plan(self, names: Sequence[str]) -> MatrixPlan:
        """The plan of tensors [(experts,) rows, columns] of one format as one matrix, without requesting them."""
        first = self[names[0]]
        columns, rows = first.shape[-1], sum(self[n].shape[-2] for n in names)
        n_matrices = first.shape[0] if len(first.shape) == 3 else 1
        return matrices.plan(first.format, rows, columns, n_matrices)

    def matrix(self, names: Sequence[str]) -> tuple[MatrixPlan, Buffer]:
        """The same, with its address."""
        key = tuple(names)
        if key not in self._matrices:
            plan = self.plan(names)
            self._matrices[key] = _Matrix(plan, key, Buffer(plan.n_bytes, outside=True))
        m = self._matrices[key]
        return m.plan, m.place

    def table(self, name: str) -> Buffer:
        """A looked-up table."""
        if name not in self._tables:
            self._tables[name] = Buffer(linear.table_bytes(self[name]), outside=True)
        return self._tables[name]

    def vector(self, parts: Sequence[tuple[str | None, int]], n: int = 1) -> Buffer:
        """Small tensors ([(n,) width], None: zeros) side by side as float32 [n][sum of widths]."""
        rows = np.zeros((n, sum(w for _, w in parts)), np.float32)
        start = 0
        for name, w in parts:
            if name is not None:
                rows[:, start : start + w] = self.decode(name).reshape(n, w)
            start += w
        return self._array((*parts, n), rows)

    def by_group(self, name: str | None, group: int) -> tuple[Buffer | None, int]:
        """A norm's vector [group] or [width]: its address, and floats from one group's numbers to the next's (0:
        shared)."""
        if name is None:
            return None, 0
        columns = self[name].n_elements
        return self.vector([(name, columns)]), group if columns > group else 0

    def constant(self, values: Sequence[float]) -> Buffer:
        """Constants of the program as float32."""
        return self._array(("", *values), np.asarray(values, np.float32))

    def decode(self, name: str) -> F32:
        tensor = self[name]
        return formats.get(tensor.format).decode(tensor.data)

    def place(self, base: int) -> None:
        for b in self._places():
            b.address = base
            base += round_up(b.n_bytes, ALIGNMENT)

    def load(self, launcher: Launcher, progress: Progress | None) -> None:
        """Pack tensor by tensor, releasing the file's pages on the way."""
        for place, values in self._arrays.values():
            launcher.upload(place.address, values, wait=True)
        total, done = max(1, sum(b.n_bytes for b in self._places())), 0
        for name, place in self._tables.items():
            linear.load_table(launcher, self[name], place.address)
            release(self[name].data)
            done += place.n_bytes
        for m in self._matrices.values():
            if progress:
                progress("loading weights", done / total)
            self._pack(launcher, m)
            done += m.place.n_bytes
        if progress:
            progress("loading weights", 1.0)

    def replace(self, launcher: Launcher, tensors: Mapping[str, TensorInfo]) -> None:
        """Replace values of matrices and tables. Raises BackendError as `Executable.replace` says."""
        matrices = [m for m in self._matrices.values() if not tensors.keys().isdisjoint(m.names)]
        replaceable = self._tables.keys() | {n for m in matrices for n in m.names}
        for name, tensor in tensors.items():
            check_replacement(self[name] if name in replaceable else None, tensor)
        self.tensors = {**self.tensors, **tensors}
        for name in self._tables.keys() & tensors.keys():
            linear.load_table(launcher, self[name], self._tables[name].address)
        for m in matrices:
            self._pack(launcher, m)

    def close(self) -> None:
        self.tensors = {}
        self._arrays.clear()

    def _pack(self, launcher: Launcher, m: _Matrix) -> None:
        matrices.pack(launcher, m.plan, [self[n] for n in m.names], m.place.address)
        for name in m.names:
            release(self[name].data)

    def _array(self, key: tuple[object, ...], values: F32) -> Buffer:
        if key not in self._arrays:
            self._arrays[key] = Buffer(values.nbytes, outside=True), values
        return self._arrays[key][0]

    def _places(self) -> list[Buffer]:
        arrays = [b for b, _ in self._arrays.values()]
        return [*arrays, *self._tables.values(), *(m.place for m in self._matrices.values())]
