"""Tensors that are computed when they are read, some rows at a time.

A `Lazy` stands for a tensor whose rows may come straight from a file, or be permuted, stacked, transposed or scaled
on their way. Nothing is read until rows are asked for, and then only what these rows need, so that a tensor of any
size passes through in bounded memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm.errors import ModelError

Rows = Callable[[int, int], NDArray[Any]]
"""rows(start, stop) -> [stop - start, columns], in the carrier of the tensor's dtype."""

_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")


@dataclass(frozen=True, slots=True)
class Lazy:
    """A tensor as a matrix of rows: `shape` outermost first, its last axis the columns; a vector is one row.

    `dtype` is safetensors' name of the element type, and `rows` returns its carrier (`safetensors.CARRIERS`).
    """

    name: str
    """What it is called in the checkpoint, for errors."""
    shape: tuple[int, ...]
    dtype: str
    rows: Rows
    keep: str | None = None
    """Format to store it in where none is asked for, if not that of its type: float8 times scales fits in BF16."""

    @property
    def n_rows(self) -> int:
        n = 1
        for d in self.shape[:-1]:
            n *= d
        return n

    @property
    def n_columns(self) -> int:
        return self.shape[-1] if self.shape else 1

    def floats(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows [start, stop) as float32 [stop - start, columns]."""
        return as_float32(self.rows(start, stop), self.dtype)


def as_float32(values: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Elements of a safetensors type as float32; the same array where they are that already."""
    if dtype == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    if dtype == "F8_E4M3":
        return E4M3[values]
    if dtype == "F8_E5M2":
        return (values.astype(np.uint16) << 8).view(np.float16).astype(np.float32)
    with np.errstate(over="ignore"):
        return values.astype(np.float32, copy=False)


def _e4m3() -> NDArray[np.float32]:
    """All 256 values of float8 E4M3 (OCP 8-bit Floating Point Specification): no infinities, NaN at 127 and 255."""
    bits = np.arange(256)
    exponent, mantissa = bits >> 3 & 15, bits & 7
    magnitude = np.where(exponent > 0, (8 + mantissa) * 2.0 ** (exponent - 10), mantissa * 2.0**-9)
    magnitude[bits & 127 == 127] = np.nan
    return np.where(bits < 128, magnitude, -magnitude).astype(np.float32)


E4M3 = _e4m3()


def require(t: Lazy, n_dims: int | None, dtypes: Sequence[str] = _FLOATS) -> Lazy:
    """The tensor itself. Raises ModelError where its rank (None: any) or its type is not what its place needs."""
    if n_dims is not None and len(t.shape) != n_dims:
        raise ModelError(f"tensor {t.name} has the shape {t.shape}; {n_dims} axes are needed there")
    if t.dtype not in dtypes:
        raise ModelError(f"tensor {t.name} holds {t.dtype}; {', '.join(dtypes)} can be converted there")
    return t


def take(t: Lazy, source: NDArray[np.int64], shape: tuple[int, ...] | None = None) -> Lazy:
    """Rows in another order: row i is row `source[i]` of `t`. `shape` is that of the result."""

    def rows(start: int, stop: int) -> NDArray[Any]:
        wanted = source[start:stop]
        if not wanted.size:
            return t.rows(0, 0)
        low = int(wanted.min())
        return t.rows(low, int(wanted.max()) + 1)[wanted - low]

    return replace(t, shape=shape or (len(source), t.n_columns), rows=rows)


def slice_rows(t: Lazy, start: int, stop: int, step: int = 1) -> Lazy:
    """Rows start, start + step, … of a matrix, or of each matrix of a stack."""
    n = t.shape[-2]
    inner = np.arange(start, stop, step, dtype=np.int64)
    outer = np.arange(0, t.n_rows, n, dtype=np.int64)
    return take(t, (outer[:, None] + inner).reshape(-1), (*t.shape[:-2], len(inner), t.shape[-1]))


def permuted_heads(t: Lazy, n_heads: int) -> Lazy:
    """Rows of queries or keys from halves to neighbours: in each head, row j of the first half comes beside row j of
    the second. Rotations of llama files turn neighbours. A vector (a bias) is permuted likewise."""
    n = t.shape[0]
    if n % (2 * n_heads):
        raise ModelError(f"tensor {t.name} has {n} rows, which are not {n_heads} heads of an even number of rows")
    return reordered(t, np.arange(n, dtype=np.int64).reshape(n_heads, 2, -1).swapaxes(1, 2).reshape(-1))


def reordered(t: Lazy, order: NDArray[np.int64]) -> Lazy:
    """Rows of a matrix, or elements of a vector, in another order, or some of them."""
    if len(t.shape) == 1:
        return replace(t, shape=order.shape, rows=lambda start, stop: t.rows(start, stop)[:, order])
    return take(t, order)


def slice_columns(t: Lazy, start: int, stop: int | None, step: int = 1) -> Lazy:
    """Columns start, start + step, … before `stop` (None: the end)."""
    width = len(range(*slice(start, stop, step).indices(t.n_columns)))
    return replace(t, shape=(*t.shape[:-1], width), rows=lambda a, b: t.rows(a, b)[:, start:stop:step])


def stack(parts: Sequence[Lazy]) -> Lazy:
    """Matrices of one shape and type, one above the other, as a tensor with one more axis."""
    first = parts[0]
    for part in parts:
        if part.shape != first.shape or part.dtype != first.dtype:
            raise ModelError(
                f"tensors {first.name} and {part.name} belong together, but are {first.dtype} {first.shape} and "
                f"{part.dtype} {part.shape}"
            )
    n = first.n_rows

    def rows(start: int, stop: int) -> NDArray[Any]:
        pieces = [parts[i].rows(max(start - i * n, 0), min(stop - i * n, n)) for i in range(start // n, -(-stop // n))]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces) if pieces else first.rows(0, 0)

    return replace(first, shape=(len(parts), *first.shape), rows=rows)


def transposed(t: Lazy) -> Lazy:
    """A matrix, or each of a stack, transposed: [experts, columns, rows] -> [experts, rows, columns]."""
    *outer, height, width = t.shape

    def rows(start: int, stop: int) -> NDArray[Any]:
        pieces = []
        for i in range(start // width, -(-stop // width)):
            matrix = t.rows(i * height, (i + 1) * height)
            pieces.append(matrix[:, max(start - i * width, 0) : min(stop - i * width, width)].T)
        return np.concatenate(pieces) if pieces else np.empty((0, height), t.rows(0, 0).dtype)

    return replace(t, shape=(*outer, width, height), rows=rows)


def reshaped(t: Lazy, shape: tuple[int, int]) -> Lazy:
    """A small tensor of as many elements as a matrix of this shape. Raises ModelError where it has others."""
    if t.n_rows * t.n_columns != shape[0] * shape[1]:
        raise ModelError(f"tensor {t.name} has the shape {t.shape}, which is no matrix of {shape[0]} x {shape[1]}")
    return replace(t, shape=shape, rows=lambda start, stop: t.rows(0, t.n_rows).reshape(shape)[start:stop])


def reordered_columns(t: Lazy, order: NDArray[np.int64]) -> Lazy:
    """Columns of a matrix in another order."""
    if t.n_columns != len(order):
        raise ModelError(f"tensor {t.name} has {t.n_columns} columns; {len(order)} are needed there")
    return replace(t, rows=lambda start, stop: t.rows(start, stop)[:, order])


def mapped(t: Lazy, function: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> Lazy:
    """A function of every element, in float32."""
    return replace(t, dtype="F32", rows=lambda start, stop: function(t.floats(start, stop)))


def plus(t: Lazy, addend: float) -> Lazy:
    """Every element plus a number, in float32."""
    return mapped(t, lambda values: values + np.float32(addend))


def rows_times(t: Lazy, factors: NDArray[np.float32]) -> Lazy:
    """Each row times a number of its own, in float32; stored as the tensor was. Raises ModelError for other rows."""
    if t.n_rows != len(factors):
        raise ModelError(f"tensor {t.name} has {t.n_rows} rows; its multipliers are of {len(factors)}")
    return replace(
        t,
        dtype="F32",
        rows=lambda start, stop: t.floats(start, stop) * factors[start:stop, None],
        keep=t.keep or (t.dtype if t.dtype in ("F16", "BF16") else None),
    )


def constant(name: str, values: NDArray[np.float32]) -> Lazy:
    """A vector that was computed, not read."""
    return Lazy(name, values.shape, "F32", lambda start, stop: values[None][start:stop])
