"""Weights decoded at use; a fixed budget of decoded ones is kept, so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import overload

import numpy as np
from numpy.typing import NDArray

from pyllm.backends.base import check_replacement
from pyllm.errors import BackendError
from pyllm.gguf.tensor import TensorInfo
from pyllm.quant import formats

F32 = NDArray[np.float32]

KEEP_BYTES = 768 << 20
"""Decoded weights kept over all tensors; the rest is decoded again at every use."""
_SLAB = 4 << 20
"""Weights decoded at a time: few enough that a step can be interrupted quickly."""


class Weights:
    """The tensors of a program by name. A matrix is read in slabs of rows, the experts of a layer one by one."""

    def __init__(self, tensors: Mapping[str, TensorInfo], names: list[str]) -> None:
        """Raises BackendError when a tensor is missing, FormatError when its format cannot be decoded."""
        if missing := [name for name in names if name not in tensors]:
            raise BackendError(f"the program needs tensors that were not given: {', '.join(missing[:8])}")
        self._tensors = {name: tensors[name] for name in names}
        for tensor in self._tensors.values():
            formats.get(tensor.format)
        self._kept: dict[str, F32] = {}
        self.bytes_kept = 0

    @overload
    def whole(self, name: str) -> F32: ...

    @overload
    def whole(self, name: str | None) -> F32 | None: ...

    def whole(self, name: str | None) -> F32 | None:
        """A small tensor (norm, bias, sinks), decoded and kept; None for None."""
        if name is None:
            return None
        if name not in self._kept:
            self._keep(name, self._decode(self._tensors[name], 0, self._n_rows(name)))
        return self._kept[name].reshape(self._tensors[name].shape)

    def rows(self, name: str, which: NDArray[np.integer]) -> F32:
        """Rows `which` of a matrix [rows, columns], decoded → [len(which), columns]."""
        if name in self._kept:
            return self._kept[name][which]
        out = np.empty((len(which), self._tensors[name].shape[-1]), np.float32)
        for i, row in enumerate(which):
            out[i] = self._decode(self._tensors[name], int(row), int(row) + 1)
        return out

    def slabs(self, name: str, start: int, stop: int) -> Iterator[tuple[slice, F32]]:
        """Rows start .. stop - 1 of a tensor seen as [rows, columns], in slabs: (rows from start on, [n, columns])."""
        tensor = self._tensors[name]
        step = max(1, _SLAB // tensor.shape[-1])
        keep = name not in self._kept and self.bytes_kept + 4 * tensor.n_elements <= KEEP_BYTES
        if keep:
            decoded = np.empty((self._n_rows(name), tensor.shape[-1]), np.float32)
            for first in range(0, len(decoded), step):
                decoded[first : first + step] = self._decode(tensor, first, min(first + step, len(decoded)))
            self._keep(name, decoded)
        kept = self._kept.get(name)
        for first in range(start, stop, step):
            last = min(first + step, stop)
            slab = self._decode(tensor, first, last) if kept is None else kept[first:last]
            yield slice(first - start, last - start), slab

    def replace(self, tensors: Mapping[str, TensorInfo]) -> None:
        """Replace values. Raises BackendError as `Executable.replace` says."""
        for name, tensor in tensors.items():
            check_replacement(self._tensors.get(name), tensor)
        for name in self._kept.keys() & tensors.keys():
            self.bytes_kept -= self._kept.pop(name).nbytes
        self._tensors.update(tensors)

    def clear(self) -> None:
        self._tensors, self._kept, self.bytes_kept = {}, {}, 0

    def _keep(self, name: str, decoded: F32) -> None:
        self._kept[name] = decoded
        self.bytes_kept += decoded.nbytes

    def _n_rows(self, name: str) -> int:
        tensor = self._tensors[name]
        return tensor.n_elements // tensor.shape[-1]

    def _decode(self, tensor: TensorInfo, first: int, last: int) -> F32:
        """Rows first .. last - 1 of a tensor seen as [rows, columns]."""
        quant = formats.get(tensor.format)
        return quant.decode(tensor.bytes_of_rows(first, last)).reshape(last - first, tensor.shape[-1])
