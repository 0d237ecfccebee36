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
    [matrices, bytes of a matrix's rows] where it holds some rows of each of several matrices.
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
        matrices = self.data.reshape(len(self.data), -1, row_bytes)
        matrix, row = np.divmod(np.arange(first, last), matrices.shape[1])
        return matrices[matrix, row]

    def rows(self, start: int, stop: int) -> TensorInfo:
        """Rows `start` to `stop` of a matrix, or of each matrix of a stack, as a tensor without a copy.

        The rows are part of its name: `blk.0.ffn_gate_up_exps.weight[0:512]`; `file_name` and `part` undo that.
        """
        *stack, n_rows, n_columns = self.shape
        n = math.prod(stack)
        data = self.data.reshape(n, n_rows, -1)[:, start:stop]
        data = data.reshape(n, -1) if n > 1 else data.reshape(-1)
        return TensorInfo(f"{self.name}[{start}:{stop}]", (*stack, stop - start, n_columns), self.format, data)

    def part(self, name: str) -> TensorInfo:
        """The tensor, or a view of some of its rows, by name."""
        if name == self.name:
            return self
        start, _, stop = name.removeprefix(f"{self.name}[").removesuffix("]").partition(":")
        return self.rows(int(start), int(stop))


def file_name(name: str) -> str:
    """Name of the file's tensor behind `name`, which may be that of some of its rows."""
    return name.partition("[")[0]
