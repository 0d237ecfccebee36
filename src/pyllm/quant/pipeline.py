"""Writes tensors, read row by row, to a file, each in its format; one piece of a tensor is in memory at a time."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from pyllm.config import Progress
from pyllm.errors import FormatError, RequestError
from pyllm.gguf.types import by_name
from pyllm.gguf.writer import GGUFWriter, TensorSpec, Value
from pyllm.jit.compiler import LIBRARY
from pyllm.quant import formats as known
from pyllm.quant.encoder import Encoder, EncodingError, encoding_kernel
from pyllm.quant.source import SourceTensor
from pyllm.records import dataclass

if TYPE_CHECKING:
    from pyllm.quant.base import QuantFormat

_PIECE = 1 << 21
"""Weights that are encoded at once."""
_BUFFERS = 3
"""Buffers between encoding and writing: one each, and one waiting."""


class Importance(Protocol):
    """Interface of an importance matrix (`pyllm.quant.imatrix.ImportanceMatrix`)."""

    def importance(self, name: str, columns: int | None = None) -> NDArray[np.float32] | None:
        """float32 [n_matrices, columns] of a weight, None where it has none."""


@dataclass(frozen=True, slots=True)
class TensorResult:
    """Result of a tensor. `error`: of encoding; zero for copied tensors."""

    name: str
    shape: tuple[int, ...]
    source_format: str
    format: str
    n_bytes: int
    error: EncodingError
    is_weighted: bool = False
    """Whether its errors are weighted by an importance matrix."""

    @property
    def n_elements(self) -> int:
        return prod(self.shape)

    @property
    def is_copy(self) -> bool:
        return self.source_format == self.format


@dataclass(frozen=True, slots=True)
class Summary:
    """A written file: its path (or its parts'), its bytes in all, its tensors in order."""

    paths: tuple[Path, ...]
    n_bytes: int
    tensors: tuple[TensorResult, ...]

    @property
    def n_elements(self) -> int:
        return sum(t.n_elements for t in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Mean bits per weight, without the file's header."""
        return 8 * sum(t.n_bytes for t in self.tensors) / max(1, self.n_elements)

    def by_format(self) -> dict[str, tuple[TensorResult, ...]]:
        """Tensors by format, the format with the most bytes first."""
        groups: dict[str, list[TensorResult]] = {}
        for t in self.tensors:
            groups.setdefault(t.format, []).append(t)
        return {f: tuple(g) for f, g in sorted(groups.items(), key=lambda item: -sum(t.n_bytes for t in item[1]))}


def total_error(tensors: Iterable[TensorResult]) -> EncodingError:
    """Sum of the encoded tensors' errors."""
    errors = [t.error for t in tensors if not t.is_copy]
    return EncodingError(sum(e.squared for e in errors), sum(e.power for e in errors))


def write_model(
    target: str | os.PathLike[str],
    metadata: Mapping[str, Value],
    sources: Sequence[SourceTensor],
    formats: Mapping[str, str],
    *,
    imatrix: Importance | None = None,
    n_threads: int,
    progress: Progress | None = None,
    on_tensor: Callable[[TensorResult], None] | None = None,
    overwrite: bool = False,
    split_bytes: int | None = None,
    read_from: Iterable[str | os.PathLike[str]] = (),
) -> Summary:
    """Write a GGUF file of `sources`, each in its format in `formats`, else in its own.

    Tensors whose format does not change are copied byte for byte; quantized ones that change are decoded first.
    `progress(tensor, share of all weights)` is called for each piece, `on_tensor` for each finished tensor.
    `read_from`: files that must not be overwritten. Memory: about 100 MB for any model.

    Raises FormatError where a format cannot be encoded, decoded or used for a tensor, or weights are not finite;
    RequestError where the importance matrix is of another model; GGUFError where the file cannot be written. All checks
    that need no weights come before writing; an incomplete file is removed.
    """
    unknown = formats.keys() - {s.name for s in sources}
    if unknown:
        raise FormatError(f"there is no tensor {min(unknown)!r} to give a format to")
    jobs = [_job(source, formats.get(source.name, source.format), imatrix) for source in sources]
    specs = [TensorSpec(j.source.name, j.source.shape, j.format) for j in jobs]
    writer = GGUFWriter(target, metadata, specs, overwrite=overwrite, split_bytes=split_bytes, sources=read_from)
    writer.check()
    kernels = [encoding_kernel(j.encoder, j.source.format) for j in jobs if j.encoder is not None]
    LIBRARY.load(kernels, progress)
    run = _Run(progress, on_tensor, sum(s.n_elements for s in sources))
    with writer, Encoder(n_threads) as encoder, _Output(writer) as output:
        for job in jobs:
            run.write(job, encoder, output)
    return Summary(writer.paths, writer.n_bytes, tuple(run.results))


@dataclass(frozen=True, slots=True)
class _Job:
    """A tensor, its new format, and that format's encoder (None: copy)."""

    source: SourceTensor
    format: str
    encoder: QuantFormat | None
    importance: NDArray[np.float32] | None
    """[n_matrices, columns], or one for all matrices."""

    def pieces(self) -> Iterator[tuple[int, int, NDArray[np.float32] | None]]:
        """Pieces (first row, last row, importance of their columns); within one matrix where importance differs by
        matrix."""
        n_rows, n_columns = self.source.n_rows, self.source.n_columns
        at_once = max(1, _PIECE // max(1, n_columns))
        importance = self.importance if self.importance is not None else [None]
        n = n_rows // len(importance)
        for i, weights in enumerate(importance):
            for start in range(i * n, (i + 1) * n, at_once):
                yield start, min(start + at_once, (i + 1) * n), weights


def _job(source: SourceTensor, format: str, imatrix: Importance | None) -> _Job:
    if source.format == format:
        return _Job(source, format, None, None)
    encoder = known.get(format)
    encoding_kernel(encoder, source.format)
    importance = None if imatrix is None else imatrix.importance(source.name, source.n_columns)
    if importance is not None:
        n_matrices = prod(source.shape[:-2])
        if importance.shape[1] != source.n_columns or len(importance) not in (1, n_matrices):
            raise RequestError(
                f"importance of {source.name} is {len(importance)} x {importance.shape[1]}, its matrices are "
                f"{n_matrices} with {source.n_columns} columns: the importance matrix is of another model"
            )
    return _Job(source, format, encoder, importance)


class _Run:
    """Processes tensors in order and reports progress."""

    def __init__(
        self, progress: Progress | None, on_tensor: Callable[[TensorResult], None] | None, n_elements: int
    ) -> None:
        self.results: list[TensorResult] = []
        self._progress = progress
        self._on_tensor = on_tensor
        self._n_elements = max(1, n_elements)
        self._done = 0

    def write(self, job: _Job, encoder: Encoder, output: _Output) -> None:
        source = job.source
        row_bytes = by_name(job.format).n_bytes(source.n_columns)
        squared = power = 0.0
        for start, stop, importance in job.pieces():
            self._report(source.name)
            rows = source.read(start, stop)
            n_bytes = (stop - start) * row_bytes
            buffer = output.buffer(n_bytes)
            out = buffer[:n_bytes].reshape(stop - start, row_bytes)
            if job.encoder is None:
                np.copyto(out, rows)
            else:
                error = _encoded(job, encoder, rows, start, importance, out)
                squared, power = squared + error.squared, power + error.power
            output.put(buffer, n_bytes)
            self._done += (stop - start) * source.n_columns
        result = TensorResult(
            source.name,
            source.shape,
            source.format,
            job.format,
            source.n_rows * row_bytes,
            EncodingError(squared, power),
            job.importance is not None,
        )
        self.results.append(result)
        if self._on_tensor is not None:
            self._on_tensor(result)

    def _report(self, name: str) -> None:
        if self._progress is not None:
            self._progress(name, self._done / self._n_elements)


def _encoded(
    job: _Job,
    encoder: Encoder,
    rows: NDArray[np.uint8],
    start: int,
    importance: NDArray[np.float32] | None,
    out: NDArray[np.uint8],
) -> EncodingError:
    assert job.encoder is not None
    try:
        return encoder.encode(job.encoder, rows, job.source.format, importance, out)[1]
    except FormatError as error:
        raise FormatError(f"{job.source.name}, from row {start} on: {error}") from None


class _Output:
    """A thread that writes while the next piece is encoded. Buffers are reused."""

    def __init__(self, writer: GGUFWriter) -> None:
        self._writer = writer
        self._free: queue.SimpleQueue[NDArray[np.uint8]] = queue.SimpleQueue()
        self._full: queue.SimpleQueue[tuple[NDArray[np.uint8], int] | None] = queue.SimpleQueue()
        for _ in range(_BUFFERS):
            self._free.put(np.empty(0, np.uint8))
        self._error: BaseException | None = None
        self._is_stopped = False
        self._thread = threading.Thread(target=self._run, name="pyllm-writer", daemon=True)

    def buffer(self, n_bytes: int) -> NDArray[np.uint8]:
        """A buffer for a piece: uint8 [n_bytes or more]. Raises errors of earlier writes."""
        buffer = self._free.get()
        if self._error is not None:
            raise self._error
        return buffer if buffer.size >= n_bytes else np.empty(n_bytes, np.uint8)

    def put(self, buffer: NDArray[np.uint8], n_bytes: int) -> None:
        """Write the first bytes of a buffer in the thread."""
        self._full.put((buffer, n_bytes))

    def __enter__(self) -> _Output:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._is_stopped = error is not None
        self._full.put(None)
        self._thread.join()
        if error is None and self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (piece := self._full.get()) is not None:
            buffer, n_bytes = piece
            try:
                if self._error is None and not self._is_stopped:
                    self._writer.write(buffer[:n_bytes])
            except BaseException as error:
                self._error = error
            self._free.put(buffer)
