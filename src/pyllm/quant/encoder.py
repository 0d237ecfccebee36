"""Encoding of rows by compiled kernels, on several threads."""

from __future__ import annotations

from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from pyllm.errors import FormatError
from pyllm.jit.compiler import LIBRARY, Kernel, kernel
from pyllm.jit.memory import aligned_zeros
from pyllm.jit.threads import Pool
from pyllm.quant.base import QuantFormat
from pyllm.quant.formats import get
from pyllm.records import dataclass

EXTRA_SCRATCH = 1 << 18
"""Bytes of scratch memory for a row's encoder, beside the row and its decoded values; a multiple of 64."""


@dataclass(frozen=True, slots=True)
class EncodingError:
    """Error of encoded rows, summed over their weights x with importance w (1 where none was given)."""

    squared: float
    """Sum of w (decoded - x)²."""
    power: float
    """Sum of w x²."""

    @property
    def relative(self) -> float:
        """sqrt(squared / power); 0: lossless."""
        return float(np.sqrt(self.squared / self.power)) if self.power > 0 else 0.0


def encoding_kernel(format: QuantFormat, source: str) -> Kernel:
    """The kernel from rows of `source` ("F16", or any format that can be decoded) to `format`.

    Raises FormatError if there is none.
    """
    if format.encoder is None:
        raise FormatError(f"pyllm cannot encode {format.name}")
    return kernel(f"quant.kernels.{format.encoder}", "encode", format=format.name, source=get(source).name.lower())


def _search_weights(importance: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """Importance normalized for encoders: of mean 1 and nowhere 0. None where all of it is 0.

    Groups without any importance are then quantized as if it were uniform.
    """
    mean = float(importance.mean(dtype=np.float64))
    return (importance.astype(np.float64) / mean + 1e-6).astype(np.float32) if mean > 0 else None


class Encoder:
    """A thread pool that encodes. One caller at a time; `close` ends the threads."""

    def __init__(self, n_threads: int) -> None:
        self._pool = Pool(n_threads)
        self._in_use: tuple[object, ...] = ()

    def encode(
        self,
        format: QuantFormat,
        rows: NDArray[np.uint8],
        source: str,
        importance: NDArray[np.float32] | None = None,
        out: NDArray[np.uint8] | None = None,
    ) -> tuple[NDArray[np.uint8], EncodingError]:
        """Rows [n_rows, bytes] of the format `source` ("F16", "Q8_0") -> uint8 [n_rows, n_bytes], and the error.

        `importance` [n_weights] weighs the squared errors of columns: finite, not negative. `out` takes the result.
        Raises FormatError where rows are not whole blocks or weights are not finite; `out` is then half-written.
        """
        k = encoding_kernel(format, source)
        n_rows, n_columns = len(rows), rows.shape[1] // get(source).block_bytes * get(source).block_size
        if n_columns % format.block_size:
            raise FormatError(
                f"rows of {n_columns} weights are not whole blocks of {format.name}'s {format.block_size}"
            )
        n_bytes = n_columns // format.block_size * format.block_bytes
        if out is None:
            out = np.empty((n_rows, n_bytes), np.uint8)
        if out.shape != (n_rows, n_bytes) or out.dtype != np.uint8 or not out.flags.c_contiguous:
            raise FormatError(f"encoded rows need uint8 [{n_rows}, {n_bytes}], not {out.dtype} {out.shape}")
        rows = np.ascontiguousarray(rows)
        if importance is not None:
            importance = np.ascontiguousarray(importance, np.float32)
            if importance.shape != (n_columns,) or not np.all((importance >= 0) & (importance < np.inf)):
                raise FormatError(f"importance must be {n_columns} finite values that are not negative")
        weights = None if importance is None else _search_weights(importance)
        errors = np.zeros((n_rows, 2), np.float64)
        counter = np.zeros(1, np.int64)
        scratch_bytes = -(-8 * n_columns // 64) * 64 + EXTRA_SCRATCH
        scratch = aligned_zeros((self._pool.n_threads * scratch_bytes,), np.uint8)
        slots = np.array(
            [
                0,
                counter.ctypes.data,
                rows.ctypes.data,
                rows.shape[1],
                n_rows,
                n_columns,
                0 if importance is None else importance.ctypes.data,
                0 if weights is None else weights.ctypes.data,
                out.ctypes.data,
                n_bytes,
                errors.ctypes.data,
                scratch.ctypes.data,
                scratch_bytes,
            ],
            np.int64,
        )
        # Two interrupts in a row can end this call while threads are still at work on these arrays.
        self._in_use = (rows, importance, weights, out, errors, counter, scratch, slots)
        self._pool.run(LIBRARY.load([k])[k], slots.ctypes.data)
        self._in_use = ()
        bad = np.flatnonzero(~np.isfinite(errors[:, 0]))
        if bad.size:
            raise FormatError(f"{bad.size} rows hold values that are infinite or no numbers, row {bad[0]} first")
        squared, power = errors.sum(axis=0)
        return out, EncodingError(float(squared), float(power))

    def close(self) -> None:
        """End the threads. Further calls do nothing."""
        self._pool.close()

    def __enter__(self) -> Encoder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
