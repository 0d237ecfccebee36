"""A tensor of a file: its name, shape, format, and its bytes in the memory map."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pyllm.records import dataclass


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor, still quantized.

    `shape` is outermost first: a matrix is (rows, columns), the experts of a layer (experts, rows, columns); the
    last axis is the one that blocks run along (ggml's `ne[0]`). `format` is the format's name as ggml writes it
    ("Q4_K"). `data` is a read-only uint8 view of the mapped file, not a copy: [n_bytes], or
    [groups, bytes of a group's rows] where it holds some rows of each matrix, or of each of a matrix's groups of rows.
    """

    name: str
    shape: tuple[int, ...]
    format: str
    data: NDArray[np.uint8]

    @property
    def n_elements(self) -> int:
        n = 1
        for d in self.shape:
            n *= d
        return n

    @property
    def n_bytes(self) -> int:
        return self.data.nbytes

    def bytes_of_rows(self, first: int, last: int) -> NDArray[np.uint8]:
        """Bytes [last - first, bytes of a row] of rows first to last - 1 of the tensor seen as [rows, columns]."""
        row_bytes = self.n_bytes // (self.n_elements // self.shape[-1])
        if self.data.ndim == 1:
            return self.data[first * row_bytes : last * row_bytes].reshape(last - first, row_bytes)
        groups = self.data.reshape(len(self.data), -1, row_bytes)
        group, row = np.divmod(np.arange(first, last), groups.shape[1])
        return groups[group, row]

    def rows(self, start: int, stop: int, period: int = 0) -> TensorInfo:
        """Rows `start` to `stop` of a matrix, or of each matrix of a stack, as a tensor without a copy; with a period,
        those rows of each `period` rows.

        The rows are part of its name, `blk.0.ffn_gate_up_exps.weight[0:512]` or `blk.3.attn_q.weight[0:256/512]`;
        `file_name` and `part` undo that.
        """
        *stack, n_rows, n_columns = self.shape
        per_matrix = n_rows // period if period else 1
        n = math.prod(stack) * per_matrix
        data = self.data.reshape(n, n_rows // per_matrix, -1)[:, start:stop]
        data = data.reshape(n, -1) if n > 1 else data.reshape(-1)
        name = f"{self.name}[{start}:{stop}/{period}]" if period else f"{self.name}[{start}:{stop}]"
        return TensorInfo(name, (*stack, per_matrix * (stop - start), n_columns), self.format, data)

    def item(self, i: int) -> TensorInfo:
        """The i-th along the first axis, without axes of length 1 before the next one, as a tensor without a copy:
        `blk.0.time_mix_w2.weight[2]`."""
        n = self.n_bytes // self.shape[0]
        shape = self.shape[1:]
        while len(shape) > 1 and shape[0] == 1:
            shape = shape[1:]
        return TensorInfo(f"{self.name}[{i}]", shape, self.format, self.data[i * n : (i + 1) * n])

    def part(self, name: str) -> TensorInfo:
        """The tensor, or a view of some of its rows or of an item, by name: any tensor's name, of which only what is in
        brackets is read."""
        rows = name.removeprefix(file_name(name)).strip("[]")
        if not rows:
            return self
        start, colon, rest = rows.partition(":")
        if not colon:
            return self.item(int(start))
        stop, _, period = rest.partition("/")
        return self.rows(int(start), int(stop), int(period or 0))


def file_name(name: str) -> str:
    """Name of the file's tensor behind `name`, which may be that of some of its rows."""
    return name.partition("[")[0]
