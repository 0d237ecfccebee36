"""Sources of a new file's weights: tensors whose rows are read piece by piece, in order."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pyllm.gguf.types import by_name
from pyllm.records import dataclass

if TYPE_CHECKING:
    from pyllm.gguf.reader import GGUFFile

_READ_AHEAD = 8 << 20
"""Bytes of read-ahead."""


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """A tensor to read. `shape` is outermost first, `format` as ggml writes it ("F16", "Q4_K").

    `read(start, stop)` returns rows start to stop of the tensor seen as (product of shape[:-1], shape[-1]), as uint8
    [stop - start, row_bytes] in `format`. Rows are read in order, each once; they are valid until the next tensor is
    read.
    """

    name: str
    shape: tuple[int, ...]
    format: str
    read: Callable[[int, int], NDArray[np.uint8]]

    @property
    def n_rows(self) -> int:
        return prod(self.shape[:-1])

    @property
    def n_columns(self) -> int:
        return self.shape[-1] if self.shape else 1

    @property
    def n_elements(self) -> int:
        return self.n_rows * self.n_columns

    @property
    def row_bytes(self) -> int:
        return by_name(self.format).n_bytes(self.n_columns)


def sources_of(file: GGUFFile) -> list[SourceTensor]:
    """A file's tensors, in file order. Mapped pages are read ahead, and released after use."""
    pages = _Pages(file)
    return [SourceTensor(t.name, t.shape, t.format, _Rows(pages, t.name).read) for t in file.tensors.values()]


class _Pages:
    """The pages of a file's map in use: the current tensor, and the beginning of the next."""

    def __init__(self, file: GGUFFile) -> None:
        self.file = file
        self._names = list(file.tensors)
        self._next = dict(zip(self._names, self._names[1:], strict=False))
        self._present: str | None = None

    def advance(self, name: str, used: int, ahead: int) -> None:
        """Release the tensor's bytes before `used`, and read ahead those before `ahead`."""
        if self._present not in (None, name):
            self.file.release(self._present)
        self._present = name
        self.file.release(name, 0, used)
        n_bytes = self.file.tensors[name].n_bytes
        self.file.prefetch(name, used, min(ahead, n_bytes))
        if ahead > n_bytes and name in self._next:
            self.file.prefetch(self._next[name], 0, ahead - n_bytes)


@dataclass(frozen=True, slots=True)
class _Rows:
    pages: _Pages
    name: str

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        tensor = self.pages.file.tensors[self.name]
        n_columns = tensor.shape[-1] if tensor.shape else 1
        row_bytes = by_name(tensor.format).n_bytes(n_columns)
        self.pages.advance(self.name, start * row_bytes, stop * row_bytes + _READ_AHEAD)
        return tensor.data[start * row_bytes : stop * row_bytes].reshape(stop - start, row_bytes)
