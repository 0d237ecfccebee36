"""Importance matrices: for each weight, the mean squares of its columns' inputs on some text.

An encoder weighs a column's errors by them. The files are llama.cpp's: GGUF files with two tensors for each weight,
NAME.in_sum2 (sums of squares) and NAME.counts (tokens in them), or the older ".dat" files. Source: tools/imatrix and
common/imatrix-loader in the llama.cpp repository.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pyllm.errors import GGUFError, RequestError
from pyllm.gguf.mapped import MappedFile
from pyllm.gguf.reader import GGUFFile
from pyllm.gguf.tensor import TensorInfo
from pyllm.records import dataclass

CHUNK_SIZE = 512
"""Default tokens of a chunk; older files do not state them."""

_SUMS, _COUNTS = ".in_sum2", ".counts"
_MOST_NAME = 256


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums collected for one weight."""

    squares: NDArray[np.float64]
    """[n_matrices, columns]: sums of squared inputs; n_matrices is the number of experts, or 1."""
    counts: NDArray[np.int64]
    """[n_matrices]: tokens in each sum."""

    def __post_init__(self) -> None:
        if self.squares.ndim != 2 or self.counts.shape != self.squares.shape[:1]:
            raise ValueError(f"sums {self.squares.shape} and counts {self.counts.shape} do not go together")


class ImportanceMatrix:
    """Sums by weight, and their origin.

    `datasets` are the texts' names, `chunks` the number of windows read, `chunk_size` their tokens.
    """

    def __init__(
        self,
        sums: Mapping[str, Sums] | None = None,
        datasets: Iterable[str] = (),
        chunks: int = 0,
        chunk_size: int = CHUNK_SIZE,
    ) -> None:
        self.sums = dict(sums or {})
        self.datasets = list(datasets)
        self.chunks = chunks
        self.chunk_size = chunk_size

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ImportanceMatrix:
        """Read a file of either kind, distinguished by content. Raises GGUFError."""
        file = MappedFile(Path(path))
        try:
            legacy = file.map[:4] != b"GGUF"
            if legacy:
                return _read_legacy(file)
        finally:
            file.close()
        with GGUFFile(Path(path)) as gguf:
            return _read_gguf(gguf)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = True) -> None:
        """Write a GGUF file, complete or not at all. Sums and counts are rounded to float32, the files' type."""
        from pyllm.gguf.types import ValueType
        from pyllm.gguf.writer import GGUFWriter, TensorSpec, Value

        metadata = {
            "general.type": Value.of("imatrix"),
            "imatrix.datasets": Value(ValueType.ARRAY, self.datasets, ValueType.STRING),
            "imatrix.chunk_count": Value(ValueType.UINT32, self.chunks),
            "imatrix.chunk_size": Value(ValueType.UINT32, self.chunk_size),
        }
        tensors: list[TensorSpec] = []
        data: list[NDArray[np.float32]] = []
        for name, entry in sorted(self.sums.items(), key=lambda item: item[0].encode()):
            for suffix, floats in ((_SUMS, _f32(entry.squares)), (_COUNTS, _f32(entry.counts[:, None]))):
                # One matrix is stored as a vector, as llama.cpp leaves out trailing axes of one.
                tensors.append(TensorSpec(name + suffix, floats.shape if len(floats) > 1 else floats.shape[1:], "F32"))
                data.append(floats)
        with GGUFWriter(Path(path), metadata, tensors, overwrite=overwrite) as writer:
            for values in data:
                writer.write(values)

    @classmethod
    def merge(cls, parts: Iterable[ImportanceMatrix]) -> ImportanceMatrix:
        """Merge matrices of several texts. Raises RequestError where a weight's sums have different shapes."""
        out: ImportanceMatrix | None = None
        for part in parts:
            if out is None:
                out = cls(part.sums, part.datasets, part.chunks, part.chunk_size)
                continue
            for name, sums in part.sums.items():
                out.add(name, sums)
            out.datasets += [name for name in part.datasets if name not in out.datasets]
            out.chunks = out.most_counted // out.chunk_size
        if out is None:
            raise RequestError("there is no importance matrix to merge")
        return out

    @property
    def most_counted(self) -> int:
        """Largest number of tokens in a sum; without experts, the tokens read."""
        return max((int(s.counts.max(initial=0)) for s in self.sums.values()), default=0)

    def add(self, name: str, new: Sums) -> None:
        """Add sums of further text to a weight's. Raises RequestError where the shapes differ."""
        old = self.sums.get(name)
        if old is None:
            self.sums[name] = new
            return
        if old.squares.size == new.squares.size and 1 in (len(old.counts), len(new.counts)):
            # Older files count all experts together.
            n = max(len(old.counts), len(new.counts))
            old, new = _split(old, n), _split(new, n)
        if old.squares.shape != new.squares.shape:
            raise RequestError(
                f"importance of {name} is {_shape(new)} here and {_shape(old)} there: they are of different models"
            )
        self.sums[name] = Sums(old.squares + new.squares, old.counts + new.counts)

    def importance(self, name: str, columns: int | None = None) -> NDArray[np.float32] | None:
        """Mean squared inputs of a weight's columns, float32 [n_matrices, columns]; None without data.

        An expert that no token reached gets the mean of the others. `columns`, if given, splits rows of files that
        count all experts together. Raises RequestError where that is impossible.
        """
        sums = self.sums.get(name)
        if sums is None or not sums.counts.any():
            return None
        if columns is not None and sums.squares.shape[1] != columns:
            if len(sums.counts) > 1 or sums.squares.shape[1] % columns:
                raise RequestError(
                    f"importance of {name} is {_shape(sums)}, not of rows of {columns} weights: "
                    "the importance matrix is of another model"
                )
            sums = _split(sums, sums.squares.shape[1] // columns)
        counts = sums.counts[:, None]
        mean = sums.squares / np.maximum(counts, 1)
        if not sums.counts.all():
            mean = np.where(counts > 0, mean, sums.squares.sum(axis=0) / sums.counts.sum())
        return mean.astype(np.float32)


def _f32(values: NDArray[np.float64] | NDArray[np.int64]) -> NDArray[np.float32]:
    return np.ascontiguousarray(values, "<f4")


def _split(sums: Sums, n: int) -> Sums:
    """Sums by expert, of experts that were counted together."""
    if len(sums.counts) == n:
        return sums
    return Sums(sums.squares.reshape(n, -1), np.repeat(sums.counts, n))


def _shape(sums: Sums) -> str:
    n, columns = sums.squares.shape
    return f"{n} x {columns}" if n > 1 else str(columns)


def _checked(squares: NDArray[np.floating], counts: NDArray[np.floating], name: str, path: Path) -> Sums:
    """Sums as read, in double precision. Raises GGUFError where they cannot be sums of squares."""
    with np.errstate(invalid="ignore"):
        good = np.all((squares >= 0) & (squares < np.inf)) and np.all((counts >= 0) & (counts < 2**53))
    if not good:
        raise GGUFError(f"{path}: the sums of {name} are negative, infinite or no numbers; collect them again")
    return Sums(squares.astype(np.float64), np.rint(counts).astype(np.int64))


def _read_gguf(file: GGUFFile) -> ImportanceMatrix:
    tensors, metadata = file.tensors, file.metadata
    names = [name.removesuffix(_SUMS) for name in tensors if name.endswith(_SUMS)]
    if not names:
        raise GGUFError(f"{file.path} holds no importance matrix: it has no tensor whose name ends in {_SUMS}")
    sums = {}
    for name in names:
        squares = tensors[name + _SUMS]
        counts = tensors.get(name + _COUNTS)
        if counts is None or counts.n_elements < 1 or squares.n_elements % counts.n_elements:
            raise GGUFError(f"{file.path}: {name} has no counts that fit its sums")
        n = counts.n_elements
        sums[name] = _checked(_floats(squares, file).reshape(n, -1), _floats(counts, file), name, file.path)
    datasets = metadata.get("imatrix.datasets", [])
    if not isinstance(datasets, list):
        datasets = []
    size = _positive(metadata.get("imatrix.chunk_size")) or CHUNK_SIZE
    out = ImportanceMatrix(sums, datasets, chunk_size=size)
    out.chunks = _positive(metadata.get("imatrix.chunk_count")) or out.most_counted // size
    return out


def _floats(tensor: TensorInfo, file: GGUFFile) -> NDArray[np.float32]:
    if tensor.format != "F32":
        raise GGUFError(f"{file.path}: {tensor.name} is {tensor.format}; importance matrices are F32")
    return tensor.data.view("<f4")


def _positive(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _read_legacy(file: MappedFile) -> ImportanceMatrix:
    """Read an older file: each weight's mean squares times its number of chunks, experts in one long row."""
    n_entries = file.u32(0, "the number of weights")
    at, sums = 4, {}
    # A weight takes 17 bytes at least.
    if not 0 < n_entries <= file.size // 17:
        raise GGUFError(f"{file.path} is not an importance matrix: neither a GGUF file nor an older one")
    for _ in range(n_entries):
        name, at = _legacy_name(file, at)
        chunks, n = file.u32(at, "a number of chunks"), file.u32(at + 4, "a number of columns")
        at += 8
        if n == 0 or chunks >= 1 << 31:
            raise file.error(at, f"{name} has {n} columns and {chunks} chunks")
        file.need(at, 4 * n, f"importance of {n} columns")
        squares = np.frombuffer(file.map, "<f4", n, at)
        at += 4 * n
        # Zero chunks: means of unknown weight, counted as one chunk.
        counts = np.array([max(chunks, 1) * CHUNK_SIZE], np.float64)
        sums[name] = _checked(squares[None].astype(np.float64) * CHUNK_SIZE, counts, name, file.path)
    out = ImportanceMatrix(sums)
    out.chunks = out.most_counted // CHUNK_SIZE
    if at < file.size:
        out.chunks = file.u32(at, "the number of chunks")
        length = file.u32(at + 4, "the length of a file name")
        file.need(at + 8, length, "a file name")
        if length:
            out.datasets = [file.map[at + 8 : at + 8 + length].decode("utf-8", "replace")]
    return out


def _legacy_name(file: MappedFile, at: int) -> tuple[str, int]:
    length = file.u32(at, "the length of a name")
    if not 0 < length <= _MOST_NAME:
        raise file.error(at, f"{file.path.name} is not an importance matrix: a weight's name would have {length} bytes")
    file.need(at + 4, length, "a weight's name")
    try:
        return file.map[at + 4 : at + 4 + length].decode(), at + 4 + length
    except UnicodeDecodeError:
        raise file.error(at + 4, "a weight's name is not text; this is not an importance matrix") from None
